"""The data types that the parts of the router share."""
