"""Who calls: tokens, certificates, and each caller's limits. Knows no transport."""
