"""The host side of training: chunks of updates, seeds side by side, devices."""
