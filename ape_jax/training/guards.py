"""What must hold of a run from chunk to chunk: finite losses, finite parameters."""

import jax
import jax.numpy as jnp
import numpy as np

from ape_jax.algorithms import TrainState
from ape_jax.algorithms.common import Metrics
from ape_jax.types import NonFiniteError

TERMS = (
    *("policy_loss", "value_loss", "entropy", "classifier_loss", "calibration_error"),
    *("grad_norm", "multipliers"),
)
"""Metrics that are finite in every sound run; returns are not known before an episode has ended."""


def check(metrics: Metrics, state: TrainState, first_update: int) -> None:
    """Look at a chunk before it is saved.

    Args:
      metrics: of the chunk, arrays [K, updates, …].
      state: after it.
      first_update: number of its first update, from 0.

    Raises:
      NonFiniteError: which term is not finite, at which update first; or which parameters.
    """
    found = []
    for order, term in enumerate(TERMS):
        values = getattr(metrics, term)
        if values is None:
            continue
        bad = ~np.isfinite(np.asarray(values))
        bad = bad.reshape(*bad.shape[:2], -1).any(axis=-1)  # [K, updates]
        if bad.any():
            update = int(bad.any(axis=0).argmax())
            found.append((update, order, term, int(bad[:, update].argmax())))
    if found:
        update, _, term, seed = min(found)
        raise NonFiniteError(
            f"{term} is not finite at update {first_update + update} (seed number {seed} of the "
            "run)"
        )
    finite = jax.device_get(_finite(state.params))
    for path, holds in jax.tree_util.tree_leaves_with_path(finite):
        if not holds:
            num_updates = np.shape(metrics.pe_return)[1]
            raise NonFiniteError(
                f"parameters {jax.tree_util.keystr(path)} are not finite after update "
                f"{first_update + num_updates - 1}"
            )


@jax.jit
def _finite(params):
    return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), params)
