"""The attackers of an audit: what each may use, and how it acts."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.envs.world import World
from ape_jax.evaluation import makers
from ape_jax.evaluation.deployment import (
    Deploy,
    deploy,
    deploy_as,
    deploy_candidates,
    deploy_modes,
    deploy_planned,
)
from ape_jax.evaluation.effort import Setting
from ape_jax.observers import (
    BestTemperature,
    Dagger,
    Epsilon,
    Escape,
    Filtered,
    FrameStack,
    Gail,
    InverseSoftQ,
    MeanAction,
    Mixture,
    MixtureDensityNetwork,
    Observer,
    OneStep,
    Posterior,
    Recurrent,
)
from ape_jax.observers.threats import THREATS
from ape_jax.types import SettingError


class Attacker(NamedTuple):
    """An observer as the audit runs it."""

    threat: str | None
    """The threat model that it needs; None for a yardstick that looks inside the ensemble."""
    make: Callable[[Setting], Mapping[str, Observer]]
    """The observers to fit, by what tells them apart; an empty text where there is one."""
    deploy: Deploy = deploy
    needs: tuple[str, ...] = ()
    """Names in ``NEEDS`` of the things that demonstrations must hold."""
    actions: str | None = None
    """``discrete`` or ``continuous`` where it can attack only those."""
    by_networks: bool = False
    """Whether it fits networks even where observations are finite."""
    asks: bool = False
    """Whether the experts have to be there: it looks inside, or asks them."""


def _one(make: Callable[[Setting], Observer]) -> Callable[[Setting], dict[str, Observer]]:
    return lambda setting: {"": make(setting)}


SHARES = (0.1, 0.25, 0.5)
"""Shares of the episodes that ``filtered`` keeps."""

FRAMES = (1, 2, 4)
"""Observations and actions that ``frame_stack`` sees."""

_both, _own = deploy_as("sampled", "greedy"), deploy_as("own")

ATTACKERS = {
    "mixture": Attacker(None, _one(lambda x: Mixture(x.task.networks, x.heads)), asks=True),
    "posterior": Attacker(
        None,
        _one(lambda x: Posterior(x.task, x.heads, **makers.training(x))),
        asks=True,
    ),
    "behaviour_cloning": Attacker("pooled", _one(makers.cloning)),
    "limited": Attacker("pooled", _one(makers.limited), by_networks=True),
    "mean_action": Attacker(
        "pooled",
        _one(lambda x: MeanAction(**makers.training(x))),
        _own,
        actions="continuous",
    ),
    "gaussian_mixture": Attacker(
        "pooled",
        _one(lambda x: MixtureDensityNetwork(**makers.training(x))),
        _both,
        actions="continuous",
    ),
    "best_temperature": Attacker(
        "pooled", _one(lambda x: BestTemperature(makers.cloning(x))), deploy_candidates
    ),
    "epsilon": Attacker(
        "pooled", _one(lambda x: Epsilon(makers.cloning(x))), deploy_candidates, actions="discrete"
    ),
    "escape": Attacker(
        "pooled",
        _one(lambda x: Escape(makers.cloning(x), x.task.networks.num_states)),
        _own,
    ),
    "frame_stack": Attacker(
        "sequences",
        lambda x: {
            f"k = {k}": FrameStack(x.task.networks, k, **makers.training(x)) for k in FRAMES
        },
        _both,
        needs=("order",),
        by_networks=True,
    ),
    "latent": Attacker(
        "sequences", _one(makers.latent), deploy_modes, needs=("order",), actions="discrete"
    ),
    "recurrent": Attacker(
        "sequences",
        _one(
            lambda x: Recurrent(
                x.task.networks,
                x.task.world.horizon,
                num_updates=x.effort.recurrent_updates,
            )
        ),
        needs=("order",),
        actions="discrete",
        by_networks=True,
    ),
    "iq_learn": Attacker(
        "rewards",
        _one(lambda x: InverseSoftQ(makers.network(x), **makers.training(x))),
        _both,
        needs=("order",),
        actions="discrete",
    ),
    "filtered": Attacker(
        "rewards",
        lambda x: {f"{share:.0%}": Filtered(makers.cloning(x), share) for share in SHARES},
        _both,
        needs=("rewards",),
    ),
    "advantage_weighted": Attacker(
        "rewards", _one(makers.advantage_weighted), _both, needs=("rewards", "order")
    ),
    "one_step": Attacker(
        "rewards",
        _one(lambda x: OneStep(makers.network(x), **makers.training(x))),
        _own,
        needs=("rewards", "order"),
        actions="discrete",
    ),
    "offline_q": Attacker(
        "rewards",
        _one(makers.offline_q),
        deploy_planned,
        needs=("rewards", "order"),
    ),
    "shortest_path": Attacker(
        "rewards",
        _one(makers.shortest_path),
        _own,
        needs=("ends", "order"),
        actions="discrete",
    ),
    "from_observations": Attacker("states", makers.from_observations, _both, needs=("order",)),
    "gail": Attacker(
        "online",
        _one(lambda x: Gail(x.task, num_updates=x.effort.gail_updates)),
        _both,
        needs=("order",),
        by_networks=True,
    ),
    "dagger": Attacker(
        "interactive",
        _one(lambda x: Dagger(x.task, x.heads, makers.cloning(x), x.effort.dagger_rounds)),
        asks=True,
        actions="discrete",
    ),
}


def threat_of(observer: str, deployment: str) -> str | None:
    """The threat model that an attack needs. The best of several clones is found by trying them."""
    threat = ATTACKERS[observer].threat
    return "online" if deployment == "best" and threat in THREATS["online"].includes else threat


NEEDS = {
    "rewards": "needs rewards; all that were demonstrated are 0",
    "ends": "needs ends of the task; none was demonstrated",
    "order": "needs episodes of several steps; each has one",
}
"""Things that demonstrations may lack, with the reason that is given."""


def lacks(demonstrations: Demonstrations) -> list[str]:
    """Names in ``NEEDS`` of the things that demonstrations [*K, N] lack."""
    episode = np.asarray(demonstrations.episode)
    holds = {
        "rewards": np.any(np.asarray(demonstrations.reward) != 0),
        "ends": np.any(demonstrations.terminated),
        "order": np.any(np.diff(episode, axis=-1) == 0),
    }
    return [name for name in NEEDS if not holds[name]]


def choose(
    names: Sequence[str], threats: Sequence[str], world: World, has_experts: bool
) -> tuple[list[str], dict[str, str]]:
    """Divide observers into those that can run here, and those that cannot, with the reason.

    Yardsticks run whatever the threat models allow.

    Raises:
      SettingError: an observer or a threat model does not exist, or no observer can run.
    """
    if not threats:
        raise SettingError(f"threats must hold one of {', '.join(THREATS)}; got none")
    for threat in threats:
        if threat not in THREATS:
            raise SettingError(f"threats must be among {', '.join(THREATS)}; got {threat!r}")
    runs, skipped = [], {}
    allowed = {None, *(name for threat in threats for name in THREATS[threat].includes)}
    actions = "discrete" if world.action_bounds is None else "continuous"
    for name in names:
        if name not in ATTACKERS:
            raise SettingError(f"observers must be among {', '.join(ATTACKERS)}; got {name!r}")
        attacker = ATTACKERS[name]
        if attacker.threat not in allowed:
            skipped[name] = f"needs the threat model {attacker.threat}"
        elif attacker.actions not in (None, actions):
            skipped[name] = f"is for {attacker.actions} actions; this environment's are {actions}"
        elif attacker.asks and not has_experts:
            skipped[name] = "needs the experts; there are only demonstrations"
        else:
            runs.append(name)
    if not runs:
        reasons = "; ".join(f"{name} {why}" for name, why in skipped.items())
        raise SettingError(f"observers must hold one that can run here; {reasons or 'got none'}")
    return runs, skipped
