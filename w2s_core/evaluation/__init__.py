"""Experiments that measure what guidance does."""
