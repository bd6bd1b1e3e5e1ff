"""`pagestream keys`: makes, lists and revokes the API keys of a router."""
