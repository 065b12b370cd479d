"""The playground: a page that shows a plain and a guided answer side by side, and the search tree while it grows."""
