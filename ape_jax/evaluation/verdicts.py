"""The one meaning of "protected"."""

from ape_jax.evaluation.audit_records import Audit, Defence
from ape_jax.evaluation.intervals import Interval

PROTECTED_SHARE = 0.5
MOST_PRICE = 0.1

PROTECTED, NOT_PROTECTED, UNDECIDED = "protected", "not protected", "undecided"
KEPT_OUT = "kept out, price unknown"

MEANING = (
    "Protected under a threat model: the strongest attacker that it allows gets less than "
    f"{PROTECTED_SHARE:.0%} of the ensemble's return, counted from that of a random policy, over "
    f"the whole interval, and the ensemble costs at most {MOST_PRICE:.0%} of the return that "
    "experts have who hide nothing, counted likewise."
)


def verdict(fraction: Interval | None, price: Interval | None) -> str:
    """Whether an ensemble is protected, as ``MEANING`` says.

    Args:
      fraction: share of the ensemble's return that the strongest attacker gets; None where there
        is no share.
      price: share of the return that the ensemble gives up; None where it is not known.
    """
    if fraction is None or fraction.low is None or fraction.high is None:
        return UNDECIDED
    if fraction.low >= PROTECTED_SHARE:
        return NOT_PROTECTED
    if price is not None and price.mean > MOST_PRICE:
        return NOT_PROTECTED
    if fraction.high >= PROTECTED_SHARE:
        return UNDECIDED
    return KEPT_OUT if price is None else PROTECTED


def price_share(audit: Audit, defence: Defence) -> Interval | None:
    """Share of the optimal return, counted from a random policy's, that an ensemble gives up.

    None where the optimal return is not known, or no better than that of a random policy.
    """
    if defence.price is None or audit.optimal_return is None:
        return None
    scale = audit.optimal_return - audit.random_return
    if scale <= 1e-6:
        return None
    return Interval.over_seeds([value / scale for value in defence.price.values])
