"""A request from admission to events: planned, searched, streamed and observed."""
