"""Telemetry: Prometheus metrics, OpenTelemetry spans and the record of each request."""
