"""Comparisons of speed; run from the root of the repository, and not part of the package."""

import os

from ape_jax.cli import SMALL_LOOPS

# Before JAX looks for a GPU: PyTorch needs some of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# As the commands do, and before JAX is imported.
os.environ.setdefault("XLA_FLAGS", SMALL_LOOPS)
