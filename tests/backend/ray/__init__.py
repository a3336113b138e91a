"""What needs no Ray."""
