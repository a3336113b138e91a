"""The loop: admit, pick, step, deliver. Owns the threads; knows no gRPC."""
