"""gRPC: messages to requests, events to messages, errors to statuses. Owns grpc and the stubs."""
