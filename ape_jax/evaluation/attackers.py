"""The observers as an audit runs them: what each may see, and how much it computes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ape_jax.algorithms.task import Task
from ape_jax.config import TrainConfig
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.envs.world import World
from ape_jax.evaluation.deployment import Outcome, deploy, deploy_modes
from ape_jax.networks import Networks, make_networks
from ape_jax.observers import (
    BehaviourCloning,
    Dagger,
    LatentCloning,
    Limited,
    Mixture,
    Observer,
    Posterior,
    Recurrent,
    TabularCloning,
    TabularLatent,
)
from ape_jax.types import Params, PRNGKey, SettingError


@dataclasses.dataclass(frozen=True)
class Effort:
    """Amounts of data and computation that observers get. Hashable."""

    num_steps: int = 1_000_000
    curve_steps: tuple[int, ...] = (100, 1_000, 10_000, 100_000, 1_000_000)
    """Points of the curve over demonstration steps, with the widest network."""
    curve_widths: tuple[int, ...] = (1, 2, 4, 8, 16, 64)
    """Points of the curve over width, with all demonstrations."""
    limited_steps: int = 1_000
    limited_width: int = 8
    """Hidden units of ``limited``."""
    fit_updates: int = 2000
    recurrent_updates: int = 1000
    latent_restarts: int = 8
    """Random starts of expectation maximisation; the one with the highest likelihood counts."""

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
    curve_steps=(100, 1_000, 100_000),
    curve_widths=(2, 64),
    fit_updates=600,
    recurrent_updates=200,
    latent_restarts=3,
)


class Setting(NamedTuple):
    """Everything that an observer is made from."""

    task: Task
    effort: Effort
    heads: Params | None
    """Parameters of the experts [E, …]; None where there are only demonstrations."""


class Attacker(NamedTuple):
    """An observer as the audit runs it."""

    sees: Callable[[Effort], str]
    """Description of the data that it is allowed to see."""
    make: Callable[[Setting], Observer]
    needs_experts: bool = False
    """Whether it looks inside the ensemble, or asks it."""
    deploy: Callable[[World, Any, Demonstrations, PRNGKey], dict[str, Outcome]] = deploy


def _network(setting: Setting, config: TrainConfig | None = None) -> Networks:
    """One head of the experts' kind, or of another config's."""
    world = setting.task.world
    config = config or setting.task.config
    return make_networks(config, world.observation_space, world.action_space)


def cloning(setting: Setting) -> TabularCloning | BehaviourCloning:
    """Cloning by counts where observations are finite, else by a network."""
    networks = setting.task.networks
    if networks.num_states is not None:
        return TabularCloning(networks.num_states, networks.num_actions)
    return BehaviourCloning(_network(setting), num_updates=setting.effort.fit_updates)


def limited(setting: Setting, num_steps: int, width: int) -> Limited:
    """Cloning of the first steps by an MLP with one hidden layer of this width."""
    config = dataclasses.replace(setting.task.config, head="mlp", hidden_sizes=(width,))
    network, num_updates = _network(setting, config), setting.effort.fit_updates
    cloning = BehaviourCloning(network, num_updates=num_updates)
    return Limited(cloning, num_steps)


def latent(setting: Setting) -> Observer:
    """Exact expectation maximisation where observations are finite, else by networks."""
    networks, effort = setting.task.networks, setting.effort
    if networks.num_states is None:
        return LatentCloning(_network(setting), num_updates=effort.fit_updates)
    return TabularLatent(
        networks.num_states, networks.num_actions, num_restarts=effort.latent_restarts
    )


ATTACKERS = {
    "mixture": Attacker(
        lambda effort: "experts, evenly",
        lambda setting: Mixture(setting.task.networks, setting.heads),
        needs_experts=True,
    ),
    "posterior": Attacker(
        lambda effort: "experts, by p(c|s)",
        lambda setting: Posterior(setting.task, setting.heads),
        needs_experts=True,
    ),
    "behaviour_cloning": Attacker(lambda effort: "all steps", cloning),
    "limited": Attacker(
        lambda effort: f"{effort.limited_steps:,} steps, {effort.limited_width} wide",
        lambda setting: limited(
            setting, setting.effort.limited_steps, setting.effort.limited_width
        ),
    ),
    "latent": Attacker(lambda effort: "all steps, episodes", latent, deploy=deploy_modes),
    "recurrent": Attacker(
        lambda effort: "episodes, memory",
        lambda setting: Recurrent(
            setting.task.networks,
            setting.task.world.horizon,
            num_updates=setting.effort.recurrent_updates,
        ),
    ),
    "dagger": Attacker(
        lambda effort: "steps, answers",
        lambda setting: Dagger(setting.task, setting.heads, cloning(setting)),
        needs_experts=True,
    ),
}

CONTINUOUS = ("mean_action", "gaussian_mixture")
"""Observers of continuous actions, which the audit does not run."""


def choose(names: Sequence[str], has_experts: bool) -> tuple[list[str], dict[str, str]]:
    """Divide observers into those that can run here, and those that cannot, with the reason.

    Raises:
      SettingError: an observer does not exist, or none can run.
    """
    runs, skipped = [], {}
    for name in names:
        if name in CONTINUOUS:
            skipped[name] = "is for continuous actions; this environment's are discrete"
        elif name not in ATTACKERS:
            known = (*ATTACKERS, *CONTINUOUS)
            raise SettingError(f"observers must be among {', '.join(known)}; got {name!r}")
        elif ATTACKERS[name].needs_experts and not has_experts:
            skipped[name] = "needs the experts; there are only demonstrations"
        else:
            runs.append(name)
    if not runs:
        reasons = "; ".join(f"{name} {reason}" for name, reason in skipped.items())
        raise SettingError(f"observers must hold one that can run here; {reasons or 'got none'}")
    return runs, skipped
