"""Access control: API keys, rate limits per key, and the limits that a reload can change."""
