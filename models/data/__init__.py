"""Interactions: files, splits and batches."""
