"""Who may do what: API keys, rate limits and request policy."""
