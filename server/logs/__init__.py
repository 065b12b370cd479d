"""Log formats and the request log."""
