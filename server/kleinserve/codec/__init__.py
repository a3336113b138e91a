"""Bytes to Pixels and back. Owns Pillow; knows nothing of requests, torch or gRPC."""
