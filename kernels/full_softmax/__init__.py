"""The full softmax (`cce`, cut cross-entropy): api, chunked in plain PyTorch, operators and kernel on Triton.

The package is not called `cce`: such a submodule would shadow the public function `srsplan.kernels.cce`.
"""

PUBLISHED_FILTER = 3e-5
"""The `filter_eps` of `cce_triton` that skips about what cut-cross-entropy skips by default in fp16 (2^-15).

Spans of the catalog in which no item has a larger share then add nothing to the table's gradient: a choice to make, not
the default.
"""
