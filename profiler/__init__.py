"""Measurement: one probe is one configuration, on CUDA in a child process or on meta tensors with the ledger."""
