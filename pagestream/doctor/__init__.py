"""`pagestream doctor`: what this machine lacks to serve, and what to do about it."""
