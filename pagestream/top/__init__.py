"""A live table of a fleet: `pagestream top [URL...]`."""
