"""The server's settings: their schema, their sources (file, environment, flags) and their reload."""
