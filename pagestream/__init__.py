"""The command line of Pagestream, for people: `pagestream COMMAND`."""
