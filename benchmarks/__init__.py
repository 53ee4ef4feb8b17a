"""Comparisons of speed; run from the root of the repository, and not part of the package."""
