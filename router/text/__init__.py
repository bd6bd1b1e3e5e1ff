"""Text to token IDs and back: tokenizers, chat templates, detokenizers that split no character."""
