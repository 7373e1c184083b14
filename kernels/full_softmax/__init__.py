"""The full softmax (`cce`, cut cross-entropy): api, chunked in plain PyTorch, operators and kernel on Triton.

The package is not called `cce`: such a submodule would shadow the public function `srsplan.kernels.cce`.
"""
