"""A request's life between its caller and a backend: taken in, told, settled, kept. Knows no transport, no tensors."""
