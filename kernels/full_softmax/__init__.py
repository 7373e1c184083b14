"""The full softmax (`cce`) on Triton: api, operators, kernel."""
