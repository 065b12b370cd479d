"""The parent's side of the worker processes: start, watch, restart, and sessions that fail over. Imports no torch."""
