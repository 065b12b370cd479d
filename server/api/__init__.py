"""OpenAI's requests and responses: routes, schemas and response bodies."""
