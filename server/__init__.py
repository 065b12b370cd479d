"""The HTTP server. Never imports torch or transformers."""
