"""Settings and their rules, as plain dataclasses: the command line reads them without JAX."""
