"""One module per verb of the command line. Heavy imports live inside the functions: `--help` must stay instant."""
