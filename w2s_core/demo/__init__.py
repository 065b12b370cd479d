"""The demo: models and data that are real, small, and need no model hub."""
