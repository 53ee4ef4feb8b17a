"""An ensemble on the gridworld whose clones are bad when they act greedily."""

import jax.numpy as jnp
import numpy as np

TRAPS = np.arange(15, 100, 6)
"""Cells where both experts most probably stay: they leave in the end, a greedy clone does not."""


def ensemble() -> dict:
    """Two experts who go up before left, the second less strictly; both fall for the traps.

    In every cell both prefer the same action by far, so every mixture of them does, whatever the
    weights, and a clone that fits at all has the same greedy actions.
    """
    probs = np.full((2, 100, 5), 0.02)
    for cell in range(100):
        row, column = divmod(cell, 10)
        action, other = (0 if row else 2), (2 if column else 0)
        if cell in TRAPS:
            probs[:, cell, 4], probs[:, cell, action] = 0.7, 0.25
        else:
            probs[1, cell, other] = 0.3
            probs[:, cell, action] = 0.9, 0.6
    probs /= probs.sum(axis=-1, keepdims=True)
    return {"params": {"table": jnp.asarray(np.log(probs), jnp.float32)}}
