"""Files that stay whole, whenever the process that writes them ends."""
