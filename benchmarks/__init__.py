"""Comparisons of speed; run from the root of the repository, and not part of the package."""

import os

# Before JAX looks for a GPU: PyTorch needs some of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
