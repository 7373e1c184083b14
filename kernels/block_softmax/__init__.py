"""The sampled softmax with negatives in blocks of a permutation: Triton kernels without atomic additions."""
