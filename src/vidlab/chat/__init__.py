"""Chat models behind an OpenAI-compatible server: requests, retries, and a journal of answers that were paid for."""
