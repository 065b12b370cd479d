"""Chunk-level beam search, its random numbers and its trace. It imports `w2s_core.types` and `interfaces` alone."""
