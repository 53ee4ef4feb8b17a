"""Summaries over seeds: means, standard deviations, intervals."""

import numpy as np
from scipy.stats import bootstrap


def over_seeds(values) -> dict:
    """Mean and sample standard deviation over the leading axis, and the values themselves."""
    values = np.asarray(values, np.float64)
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(values[0])
    return {"mean": values.mean(axis=0).tolist(), "std": spread.tolist(), "values": values.tolist()}


def interval(values) -> dict:
    """Mean over seeds, its 95 % percentile bootstrap interval, and the values [K] themselves.

    ``low`` and ``high`` are None where there is one seed alone: it says nothing about spread.
    """
    values = np.asarray(values, np.float64)
    low = high = None
    if len(values) > 1:
        drawn = bootstrap(
            (values,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(0)
        )
        low, high = (float(end) for end in drawn.confidence_interval)
    return {"mean": float(values.mean()), "low": low, "high": high, "values": values.tolist()}


def percentiles(values) -> dict:
    """The same of values that are bootstrap replicates themselves, one a resample."""
    values = np.asarray(values, np.float64)
    low, high = (float(end) for end in np.quantile(values, (0.025, 0.975)))
    if len(values) == 1:
        return interval(values)
    return {"mean": float(values.mean()), "low": low, "high": high, "values": values.tolist()}
