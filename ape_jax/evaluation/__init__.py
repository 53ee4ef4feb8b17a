"""Measurements: returns, audits, frontiers, the suite, the paper's table."""
