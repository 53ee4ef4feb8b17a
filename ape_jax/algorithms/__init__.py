"""Training algorithms: each has its configuration, ``init`` and ``update``."""
