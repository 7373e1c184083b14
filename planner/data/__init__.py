"""Shipped data: the GPU catalogue and the memory model's closed form."""
