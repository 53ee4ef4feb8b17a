"""Demonstrations of an ensemble: sampled, on disk, and in the formats of other libraries."""
