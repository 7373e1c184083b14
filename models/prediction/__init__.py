"""Recommendations of a trained run for the users of a file."""
