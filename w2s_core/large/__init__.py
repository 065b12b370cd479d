"""The large model π_base behind the `LargeModel` protocol, local or at a provider."""
