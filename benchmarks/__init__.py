"""The bench: this server beside what people write first and beside a serving framework, on one trace."""
