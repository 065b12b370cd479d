"""The parent's side of worker processes: starts, watches and restarts them; sessions fail over. Imports no torch."""
