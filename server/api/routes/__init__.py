"""The HTTP routes, one module per endpoint, and what the generating ones share (`generation.py`)."""
