"""The GPU catalogue as a table."""
