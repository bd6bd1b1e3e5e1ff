"""A chat with a model in the terminal: `pagestream chat [URL]`."""
