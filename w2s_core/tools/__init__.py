"""Calls of tools in a model's text: how models write them, and how they are read."""
