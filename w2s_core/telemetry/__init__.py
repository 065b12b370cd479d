"""Prometheus metrics, OpenTelemetry traces and the record of a request."""
