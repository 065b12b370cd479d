"""Settings from files, environment and flags, and their reload."""
