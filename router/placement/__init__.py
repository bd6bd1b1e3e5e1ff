"""Chooses the engine of a request: costs, policies, and what each engine has cached."""
