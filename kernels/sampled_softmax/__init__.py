"""The sampled softmax (`cce_neg`): api, chunked in plain PyTorch, operators and kernel on Triton.

The package is not called `cce_neg`: such a submodule would shadow the public function `srsplan.kernels.cce_neg`.
"""
