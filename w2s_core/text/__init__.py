"""Tokenizers, detokenization, stop strings, token offsets and chat templates. Imports no torch."""
