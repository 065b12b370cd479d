"""The HTTP surface of a real server process, attacked and fuzzed."""
