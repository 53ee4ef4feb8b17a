"""The forms of a computation that depend on the device: chosen here, while a program is traced.

All forms give the same results, up to the rounding of sums. A CPU runs short loops well, and
products with many zeros badly. On a GPU every operation of a loop's step is a kernel that has to be
launched, so fewer, larger operations win. On a TPU look-ups and scatters become serial loops, so
products with one-hot matrices win.
"""

import contextlib
from typing import Literal, NamedTuple

import jax

PlatformName = Literal["cpu", "gpu", "tpu"]


class Forms(NamedTuple):
    """The form of each computation that has several."""

    unroll: int
    """Steps of a rollout's loop that are written out in one."""
    parallel_returns: bool
    """Whether returns are an associative scan, in log T steps instead of T."""
    one_hot: bool
    """Whether look-ups in tables and counts are products with one-hot matrices."""
    doubling: bool
    """Whether exact values and occupancies double the number of steps, in log H products."""
    lanes: bool
    """Whether a lane takes the next episode when one has ended."""
    critic_chunk: int | None = None
    """Observations of a rollout that a critic evaluates at once; None: all."""
    row_by_row: bool = False
    """Whether layers use ``networks.modules.product``, which has no forward-mode derivative."""
    pallas: bool = False
    """Whether episodes in finite worlds are one kernel, in Pallas. Off on every platform: the
    kernel has been compiled for GPUs and TPUs, but has only run in Pallas's interpreter."""


FORMS: dict[str, Forms] = {
    "cpu": Forms(
        unroll=1,
        parallel_returns=False,
        one_hot=False,
        doubling=False,
        lanes=True,
        critic_chunk=512,
        row_by_row=True,
    ),
    "gpu": Forms(unroll=20, parallel_returns=True, one_hot=False, doubling=True, lanes=False),
    "tpu": Forms(unroll=20, parallel_returns=True, one_hot=True, doubling=True, lanes=False),
}
"""The form that is best on each platform."""

_CHOSEN = jax.make_user_context(None)


def forms() -> Forms:
    """The forms for the program that is being traced: those of JAX's default device."""
    return _CHOSEN.value or FORMS.get(jax.default_backend(), FORMS["cpu"])


def tracing_for(chosen: PlatformName | Forms) -> contextlib.AbstractContextManager[None]:
    """Trace for another platform, or with forms of one's own; a function is traced anew for each.

    Examples:
      >>> from ape_jax.core import platform
      >>> with platform.tracing_for("tpu"):
      ...     print(platform.forms().one_hot)
      True
    """
    return _CHOSEN(chosen if isinstance(chosen, Forms) else FORMS[chosen])
