"""`pagestream serve`: a router and its engines on this machine."""
