"""What a step takes, without a GPU: the ledger, its closed form, the allocator."""
