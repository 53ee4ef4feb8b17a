"""What each command of ``ape-jax`` does: its options, and a function that runs it."""
