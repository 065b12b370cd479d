"""The HTTP connection: protocol, middleware, server-sent events, TLS, disconnects and graceful shutdown."""
