"""Bytes to Pixels and back. Owns Pillow and imagecodecs; knows nothing of requests, torch or gRPC."""
