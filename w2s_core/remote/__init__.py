"""HTTP calls to other people's models: retries, circuit breaker, capability probes."""
