"""Composition root: builds an engine from its configuration."""
