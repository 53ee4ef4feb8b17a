"""Threat models: what an attacker may use. Every result of an attack names the one it needs."""

from typing import NamedTuple


class Threat(NamedTuple):
    """The things that an attacker may use."""

    uses: str
    """In words."""
    includes: tuple[str, ...]
    """The threat models whose attackers can attack here too, this one among them."""


THREATS = {
    "pooled": Threat("observations and actions, in no order", ("pooled",)),
    "sequences": Threat("the order of steps and episodes as well", ("pooled", "sequences")),
    "rewards": Threat("rewards and ends as well", ("pooled", "sequences", "rewards")),
    "states": Threat(
        "observations in order and ends, no actions; the environment, to see what actions do there",
        ("states",),
    ),
    "online": Threat(
        "all of these, and the environment with its rewards, to act in and to try clones",
        ("pooled", "sequences", "rewards", "states", "online"),
    ),
    "interactive": Threat(
        "all of these, and experts who say what they would do",
        ("pooled", "sequences", "rewards", "states", "online", "interactive"),
    ),
}
"""Threat models by name, the weaker ones first; ``states`` stands aside."""
