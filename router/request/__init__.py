"""One request in the router: checks, bounds, dispatch, failover."""
