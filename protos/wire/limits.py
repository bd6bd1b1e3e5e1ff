"""Bounds of a request that engines and routers hold alike; the contracts' comments state them."""

MAX_LABEL_CHARACTERS = 256
"""Of a request's ID, and of its cache salt."""

MAX_TEMPERATURE = 100.0

MAX_SEED = 2**63 - 1

MAX_STOP_TOKEN_IDS = 1024
