"""The engines: the fleet, the connection to each, and the contract that each must keep."""
