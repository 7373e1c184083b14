"""Import this before triton: its kernels then run on CPU tensors, in Python."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"
