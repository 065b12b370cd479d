"""One file per endpoint family. `answering` is what both kinds of generation share."""
