"""Structured output: grammars, and tool calls written, parsed and enforced."""
