"""OpenAI's Images API over the same calls, as the official `openai` package speaks it."""
