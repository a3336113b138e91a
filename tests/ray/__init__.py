"""Real Ray on this machine: `make test-ray`. Plain `make test` leaves it out, since it needs an extra of its own."""
