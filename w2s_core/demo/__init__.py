"""The demo's models: fetched, converted and trained by this repository."""
