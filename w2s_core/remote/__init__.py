"""HTTP calls to models at providers: connections, retries, circuit breakers, capability probes."""
