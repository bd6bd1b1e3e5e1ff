"""The engines: who is there, the connection to each, and what each may say."""
