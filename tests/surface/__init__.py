"""The whole HTTP surface of a real server, as software and clients that mean no good see it."""
