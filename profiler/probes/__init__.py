"""Probes, each of one configuration in a child process; their file, and the cards that they can run on."""
