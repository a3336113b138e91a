"""Where images are made: in this process, or by Ray replicas. Requests in, core events out; no gRPC, no torch."""
