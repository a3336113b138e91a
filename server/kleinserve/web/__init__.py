"""The metrics port with its probes, and the web port. Knows messages and calls, no transport of gRPC."""
