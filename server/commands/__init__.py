"""Commands of the command line besides `serve`, and how they report errors."""
