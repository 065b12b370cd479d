"""The worker process: models, KV cache, scheduling and sampling on one device. The only room that imports torch."""
