"""`pagestream completion`: scripts that let a shell complete commands, options and choices."""
