"""Checks that losses and parameters are finite, between two chunks of updates."""

import jax
import jax.numpy as jnp
import numpy as np

from ape_jax.algorithms import TrainState
from ape_jax.algorithms.common import Metrics
from ape_jax.types import NonFiniteError

TERMS = [name for name in Metrics._fields if "return" not in name]
"""Metrics that are finite in every sound run. Returns are nan until the first episode has ended."""


def check(metrics: Metrics, state: TrainState, first_update: int) -> None:
    """Check the metrics [K, updates, …] of a chunk, and the parameters [K, …] after it.

    Raises:
      NonFiniteError: a number is not finite. The message names the first update with one and the
        metric, or the parameters.
    """
    found = []
    for order, term in enumerate(TERMS):
        if (values := getattr(metrics, term)) is not None:
            finite = np.isfinite(values)
            bad = ~finite.reshape(*finite.shape[:2], -1).all(axis=-1)  # [K, updates]
            found += [(update, order, seed) for update, seed in np.argwhere(bad.T)[:1]]
    if found:
        update, order, seed = min(found)
        raise NonFiniteError(
            f"{TERMS[order]} is not finite at update {first_update + update}, in seed number "
            f"{seed} of the run"
        )
    sound = jax.device_get(_finite(state.params))
    for path, holds in jax.tree_util.tree_leaves_with_path(sound):
        if not holds:
            num_updates = np.shape(metrics.pe_return)[1]
            raise NonFiniteError(
                f"parameters {jax.tree_util.keystr(path)} are not finite after update "
                f"{first_update + num_updates - 1}"
            )


@jax.jit
def _finite(params):
    return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), params)
