"""Text to token IDs and back: tokenizers, chat templates, text that never splits a character."""
