"""Who may ask for what: API keys, their file, and the limits of each."""
