"""The paper's algorithm and its randomness. Imports types and interfaces alone."""
