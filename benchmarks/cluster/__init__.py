"""Two servers on one PostgreSQL, Envoy before them, restarted and killed under load; and a demonstration of it."""
