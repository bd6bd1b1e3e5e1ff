"""A load generator: `pagestream bench [URL]`."""
