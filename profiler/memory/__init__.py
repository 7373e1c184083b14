"""The memory of a training step, without a GPU: the ledger, its closed form, the allocator's model."""
