"""The attackers of an audit: what each may use, and how much it computes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ape_jax.algorithms.task import Task
from ape_jax.config import TrainConfig
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.envs.world import World
from ape_jax.evaluation.deployment import (
    Deploy,
    deploy,
    deploy_as,
    deploy_candidates,
    deploy_modes,
    deploy_planned,
)
from ape_jax.networks import Networks, make_networks
from ape_jax.observers import (
    AdvantageWeighted,
    BehaviourCloning,
    BestTemperature,
    Dagger,
    Epsilon,
    Escape,
    Filtered,
    FrameStack,
    FromObservations,
    Gail,
    ImplicitQ,
    InverseSoftQ,
    LatentCloning,
    Limited,
    MeanAction,
    Mixture,
    MixtureDensityNetwork,
    Observer,
    OfflineQ,
    OneStep,
    Posterior,
    Recurrent,
    ShortestPath,
    TabularCloning,
    TabularLatent,
    TimeToEnd,
)
from ape_jax.observers.threats import THREATS
from ape_jax.types import Params, SettingError


@dataclasses.dataclass(frozen=True)
class Effort:
    """Amounts of data and computation that observers get. Hashable."""

    num_steps: int = 1_000_000
    curve_steps: tuple[int, ...] = (10, 30, 100, 300, 1_000, 3_000, 10_000, 100_000, 1_000_000)
    """Demonstration steps at which the best attacker of each threat model attacks again."""
    limited_steps: int = 1_000
    limited_width: int = 8
    """Hidden units of ``limited``."""
    fit_updates: int = 4000
    recurrent_updates: int = 1000
    latent_restarts: int = 8
    """Random starts of expectation maximisation; the one with the highest likelihood counts."""
    gail_updates: int = 250
    dagger_rounds: int = 9
    practice_steps: int = 100_000
    """Steps that an attacker acts at random, to learn what actions do."""
    num_episodes: int = 2048
    """Episodes behind each return that is sampled: half to choose by, half to score."""

    def within(self, num_steps: int) -> "Effort":
        """The same effort with this many demonstration steps, and no curve points beyond them."""
        return dataclasses.replace(
            self,
            num_steps=num_steps,
            limited_steps=min(self.limited_steps, num_steps),
            curve_steps=tuple(steps for steps in self.curve_steps if steps <= num_steps),
        )


QUICK = Effort(
    num_steps=100_000,
    curve_steps=(100, 1_000, 10_000, 100_000),
    fit_updates=1000,
    recurrent_updates=200,
    latent_restarts=3,
    gail_updates=50,
    practice_steps=20_000,
)


class Setting(NamedTuple):
    """Everything that an observer is made from."""

    task: Task
    effort: Effort
    heads: Params | None
    """Parameters of the experts [E, …]; None where there are only demonstrations."""


class Attacker(NamedTuple):
    """An observer as the audit runs it."""

    threat: str | None
    """The threat model that it needs; None for a yardstick that looks inside the ensemble."""
    make: Callable[[Setting], Mapping[str, Observer]]
    """The observers to fit, by what tells them apart; an empty text where there is one."""
    deploy: Deploy = deploy
    needs: tuple[str, ...] = ()
    """What demonstrations must hold: names in ``NEEDS``."""
    actions: str | None = None
    """``discrete`` or ``continuous`` where it can attack only those."""
    by_networks: bool = False
    """Whether it fits networks even where observations are finite."""
    asks: bool = False
    """Whether the experts have to be there: it looks inside, or asks them."""


def _network(setting: Setting, config: TrainConfig | None = None) -> Networks:
    """One head of the experts' kind, or of another config's."""
    world = setting.task.world
    config = config or setting.task.config.with_state_std()
    return make_networks(config, world.observation_space, world.action_space)


def cloning(setting: Setting) -> TabularCloning | BehaviourCloning:
    """Cloning by counts where observations are finite, else by a network."""
    networks = setting.task.networks
    if networks.num_states is not None:
        return TabularCloning(networks.num_states, networks.num_actions)
    return BehaviourCloning(_network(setting), **_training(setting), learning_rate=5e-3)


def _training(setting: Setting) -> dict[str, Any]:
    """Settings of all fits of networks."""
    return {"num_updates": setting.effort.fit_updates, "batch_size": BATCH_SIZE}


def limited(setting: Setting) -> Limited:
    """Cloning of the first steps by an MLP with one hidden layer."""
    effort, config = setting.effort, setting.task.config
    if config.head == "conv":
        return Limited(cloning(setting), effort.limited_steps)
    head = "gaussian" if config.head == "gaussian" else "mlp"
    config = dataclasses.replace(config, head=head, hidden_sizes=(effort.limited_width,))
    network = _network(setting, config.with_state_std())
    return Limited(
        BehaviourCloning(network, num_updates=effort.fit_updates // 2), effort.limited_steps
    )


def latent(setting: Setting) -> Observer:
    """Exact expectation maximisation where observations are finite, else by networks."""
    networks, effort = setting.task.networks, setting.effort
    if networks.num_states is None:
        return LatentCloning(_network(setting), num_updates=effort.fit_updates // 8, batch_size=512)
    return TabularLatent(
        networks.num_states, networks.num_actions, num_restarts=effort.latent_restarts
    )


def _advantage_weighted(setting: Setting) -> Observer:
    return AdvantageWeighted(cloning(setting), _network(setting), **_training(setting))


def offline_q(setting: Setting) -> Observer:
    """Q-iteration where observations are finite, else implicit Q-learning."""
    networks = setting.task.networks
    if networks.num_states is None:
        return ImplicitQ(_network(setting), num_updates=setting.effort.fit_updates * 5 // 2)
    return OfflineQ(networks.num_states, networks.num_actions, setting.task.world.horizon)


def shortest_path(setting: Setting) -> Observer:
    """The shortest path that was seen where observations are finite, else the time to the end."""
    networks = setting.task.networks
    if networks.num_states is None:
        return TimeToEnd(_network(setting), **_training(setting))
    return ShortestPath(networks.num_states, networks.num_actions, setting.task.world.horizon)


def _from_observations(setting: Setting) -> dict[str, Observer]:
    effort = setting.effort

    def infer(observer: Observer) -> Observer:
        return FromObservations(
            setting.task.world,
            setting.task.networks,
            observer,
            effort.practice_steps,
            effort.fit_updates,
        )

    observers = {"": infer(cloning(setting))}
    if setting.task.networks.action_bounds is None:
        observers["shortest path"] = infer(shortest_path(setting))
    return observers


def _one(make: Callable[[Setting], Observer]) -> Callable[[Setting], dict[str, Observer]]:
    return lambda setting: {"": make(setting)}


BATCH_SIZE = 256
"""Steps of demonstrations in an update of a network."""

SHARES = (0.1, 0.25, 0.5)
"""Shares of the episodes that ``filtered`` keeps."""

FRAMES = (1, 2, 4)
"""Observations and actions that ``frame_stack`` sees."""

_both, _own = deploy_as("sampled", "greedy"), deploy_as("own")

ATTACKERS = {
    "mixture": Attacker(None, _one(lambda x: Mixture(x.task.networks, x.heads)), asks=True),
    "posterior": Attacker(
        None,
        _one(lambda x: Posterior(x.task, x.heads, **_training(x))),
        asks=True,
    ),
    "behaviour_cloning": Attacker("pooled", _one(cloning)),
    "limited": Attacker("pooled", _one(limited), by_networks=True),
    "mean_action": Attacker(
        "pooled",
        _one(lambda x: MeanAction(**_training(x))),
        _own,
        actions="continuous",
    ),
    "gaussian_mixture": Attacker(
        "pooled",
        _one(lambda x: MixtureDensityNetwork(**_training(x))),
        _both,
        actions="continuous",
    ),
    "best_temperature": Attacker(
        "pooled", _one(lambda x: BestTemperature(cloning(x))), deploy_candidates
    ),
    "epsilon": Attacker(
        "pooled", _one(lambda x: Epsilon(cloning(x))), deploy_candidates, actions="discrete"
    ),
    "escape": Attacker(
        "pooled",
        _one(lambda x: Escape(cloning(x), x.task.networks.num_states)),
        _own,
        needs=("order",),
    ),
    "frame_stack": Attacker(
        "sequences",
        lambda x: {f"k = {k}": FrameStack(x.task.networks, k, **_training(x)) for k in FRAMES},
        _both,
        needs=("order",),
        by_networks=True,
    ),
    "latent": Attacker(
        "sequences", _one(latent), deploy_modes, needs=("order",), actions="discrete"
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
        _one(lambda x: InverseSoftQ(_network(x), **_training(x))),
        _both,
        needs=("order",),
        actions="discrete",
    ),
    "filtered": Attacker(
        "rewards",
        lambda x: {f"{share:.0%}": Filtered(cloning(x), share) for share in SHARES},
        _both,
        needs=("rewards",),
    ),
    "advantage_weighted": Attacker(
        "rewards", _one(_advantage_weighted), _both, needs=("rewards", "order")
    ),
    "one_step": Attacker(
        "rewards",
        _one(lambda x: OneStep(_network(x), **_training(x))),
        _own,
        needs=("rewards", "order"),
        actions="discrete",
    ),
    "offline_q": Attacker(
        "rewards",
        _one(offline_q),
        deploy_planned,
        needs=("rewards", "order"),
    ),
    "shortest_path": Attacker(
        "rewards",
        _one(shortest_path),
        _own,
        needs=("ends", "order"),
        actions="discrete",
    ),
    "from_observations": Attacker("states", _from_observations, _both, needs=("order",)),
    "gail": Attacker(
        "online",
        _one(lambda x: Gail(x.task, num_updates=x.effort.gail_updates)),
        _both,
        needs=("order",),
        by_networks=True,
    ),
    "dagger": Attacker(
        "interactive",
        _one(lambda x: Dagger(x.task, x.heads, cloning(x), x.effort.dagger_rounds)),
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
"""What demonstrations may lack, with the reason that is given."""


def lacks(demonstrations: Demonstrations) -> list[str]:
    """What demonstrations [*K, N] do not hold, of ``NEEDS``."""
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

    Those that need more than the threat models allow are left out. Yardsticks are not.

    Raises:
      SettingError: an observer or a threat model does not exist, or no observer can run.
    """
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
            continue
        if attacker.actions not in (None, actions):
            skipped[name] = f"is for {attacker.actions} actions; this environment's are {actions}"
        elif attacker.asks and not has_experts:
            skipped[name] = "needs the experts; there are only demonstrations"
        else:
            runs.append(name)
    if not runs:
        reasons = "; ".join(f"{name} {reason}" for name, reason in skipped.items())
        raise SettingError(f"observers must hold one that can run here; {reasons or 'got none'}")
    return runs, skipped
