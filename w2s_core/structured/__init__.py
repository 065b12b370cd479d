"""Structured output: grammars, and tool calls enforced and parsed."""
