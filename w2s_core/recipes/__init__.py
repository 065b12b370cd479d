"""Recipes: how the demo pair is trained, and the data of the tutorial."""
