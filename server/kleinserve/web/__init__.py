"""HTTP: the metrics port with its probes; gRPC-Web, OpenAI's Images API and the playground over the same calls."""
