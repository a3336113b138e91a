"""What requests use and what that costs. Knows nothing of how images are made or sent."""
