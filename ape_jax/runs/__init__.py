"""Runs on disk: directory, checkpoints, the training loop, callbacks, export."""
