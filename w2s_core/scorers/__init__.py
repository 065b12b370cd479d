"""Scorers behind the `Scorer` protocol: local and remote pairs, their weighted sums, and likelihood."""
