"""Run tables: what moved quality, and what to try first because of it."""
