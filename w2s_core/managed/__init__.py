"""Managed vLLM: `vllm serve` as a child process of the server, behind the remote path."""
