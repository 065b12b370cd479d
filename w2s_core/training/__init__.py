"""Training: from a small base model and data to a pair (`w2s pair train`)."""
