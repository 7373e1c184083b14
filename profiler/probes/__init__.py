"""One probe is one configuration in a child process, stored; and the cards it can run on."""
