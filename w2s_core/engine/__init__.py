"""The engine: plans requests, admits them, runs their searches and yields events."""
