"""Numbers on disk: one JSON line an update, and summaries over seeds."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
from scipy.stats import bootstrap

from ape_jax.training import Metrics


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


def fingerprint(params) -> str:
    """SHA-256 of all parameters: names, types, shapes and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def append_updates(path: Path, metrics: Metrics, first_update: int) -> None:
    """Append one line an update: every metric that the run has as a list over seeds.

    What is not known yet, such as returns before the first episode has ended, is null.

    Args:
      path: the ``metrics.jsonl`` of a run.
      metrics: arrays [K, updates, …].
      first_update: number of the first of them, from 0.
    """
    columns = {
        name: _known(np.asarray(values).swapaxes(0, 1))
        for name, values in metrics._asdict().items()
        if values is not None
    }
    num_updates = len(columns["pe_return"])
    with path.open("a", encoding="utf-8") as file:
        for index in range(num_updates):
            row = {name: values[index].tolist() for name, values in columns.items()}
            file.write(json.dumps({"update": first_update + index, **row}) + "\n")


def _known(values: np.ndarray) -> np.ndarray:
    """None in the place of nan, which JSON does not have."""
    known = values.astype(object)
    known[np.isnan(values)] = None
    return known
