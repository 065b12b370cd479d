"""The OpenAI-compatible API: routes, request and response schemas, and the building of responses."""
