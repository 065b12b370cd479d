"""What clients send and get, in OpenAI's shapes: one file per endpoint family. Pydantic ends here."""
