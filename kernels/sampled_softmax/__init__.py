"""The sampled softmax (`cce-`) on Triton: api, operators, kernel."""
