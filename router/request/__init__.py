"""The way of one request through the router: checks, bounds, dispatch, failover."""
