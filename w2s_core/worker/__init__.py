"""The worker process: models, KV cache, scheduling and sampling on one device. Only here does the server run torch."""
