"""The demo models: fetched and converted (SmolLM2), or trained by this repository (the pair)."""
