"""The large model π_base behind the `LargeModel` protocol: in a local worker, or at a provider."""
