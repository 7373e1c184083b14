"""Losses side by side: forms, peers and the device's limits."""
