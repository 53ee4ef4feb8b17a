"""What observers see of an ensemble: sampled, on disk, and in other libraries' formats."""
