"""Pairs and other scorers behind the `Scorer` protocol."""
