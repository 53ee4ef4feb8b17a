"""The observers as an audit runs them: what each may see, and how much it computes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ape_jax.learner import Task
from ape_jax.networks import Networks, make_networks
from ape_jax.observers import (
    BehaviourCloning,
    Dagger,
    GaussianMixture,
    LatentCloning,
    Limited,
    MeanAction,
    Mixture,
    Observer,
    Posterior,
    Recurrent,
    TabularCloning,
    TabularLatent,
)
from ape_jax.types import Params, SettingError


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much observers see and compute. Hashable."""

    num_steps: int = 1_000_000
    """Demonstration steps."""
    curve_steps: tuple[int, ...] = (100, 1_000, 10_000, 100_000, 1_000_000)
    """Points of the curve over demonstrations, with a network of the widest size."""
    curve_widths: tuple[int, ...] = (1, 2, 4, 8, 16, 64)
    """Points of the curve over width, with all demonstrations."""
    limited_steps: int = 1_000
    limited_width: int = 8
    fit_updates: int = 2000
    """Of cloning by a network."""
    recurrent_updates: int = 1000
    latent_restarts: int = 8

    def within(self, num_steps: int) -> "Effort":
        """The same with so many demonstration steps; points beyond them are left out."""
        return dataclasses.replace(
            self,
            num_steps=num_steps,
            limited_steps=min(self.limited_steps, num_steps),
            curve_steps=tuple(steps for steps in self.curve_steps if steps <= num_steps),
        )


QUICK = Effort(
    num_steps=100_000,
    curve_steps=(100, 1_000, 10_000, 100_000),
    curve_widths=(2, 8, 64),
    fit_updates=600,
    recurrent_updates=300,
    latent_restarts=3,
)


class Setting(NamedTuple):
    """What an observer is made from."""

    task: Task
    effort: Effort
    heads: Params | None
    """None where there are demonstrations alone."""


class Attacker(NamedTuple):
    """An observer as the audit runs it."""

    sees: str
    """What it is allowed to see."""
    make: Callable[[Setting], Observer]
    needs_experts: bool = False
    """Whether it looks inside the ensemble, or asks it."""
    continuous: bool = False
    """Whether it is for continuous actions."""


def _network(setting: Setting, width: int | None = None) -> Networks:
    """One head of the experts' kind, or an MLP with one hidden layer of this width."""
    task = setting.task
    config = task.config
    if width is not None:
        config = dataclasses.replace(config, head="mlp", hidden_sizes=(width,))
    return make_networks(
        config, task.env.observation_space(task.env_params), task.env.action_space(task.env_params)
    )


def _cloning(setting: Setting) -> TabularCloning | BehaviourCloning:
    networks = setting.task.networks
    if networks.num_states is not None:
        return TabularCloning(networks.num_states, networks.num_actions)
    return BehaviourCloning(_network(setting), setting.effort.fit_updates)


def limited(setting: Setting, num_steps: int, width: int) -> Limited:
    """Cloning of so many steps by a network of this width."""
    cloning = BehaviourCloning(_network(setting, width), setting.effort.fit_updates)
    return Limited(cloning, num_steps)


def _latent(setting: Setting) -> Observer:
    networks, effort = setting.task.networks, setting.effort
    if networks.num_states is None:
        return LatentCloning(_network(setting), num_updates=effort.fit_updates)
    return TabularLatent(
        networks.num_states, networks.num_actions, num_restarts=effort.latent_restarts
    )


ATTACKERS = {
    "mixture": Attacker(
        "inside the ensemble; weighs experts evenly: overstates protection",
        lambda setting: Mixture(setting.task.networks, setting.heads),
        needs_experts=True,
    ),
    "posterior": Attacker(
        "inside the ensemble; weighs experts by p(c|s): the limit of cloning",
        lambda setting: Posterior(setting.task, setting.heads),
        needs_experts=True,
    ),
    "behaviour_cloning": Attacker("all demonstrations", _cloning),
    "limited": Attacker(
        "few demonstrations, with a small network",
        lambda setting: limited(
            setting, setting.effort.limited_steps, setting.effort.limited_width
        ),
    ),
    "latent": Attacker("all demonstrations, told apart by episode", _latent),
    "recurrent": Attacker(
        "up to 8,192 episodes, and its own history",
        lambda setting: Recurrent(
            setting.task.networks,
            setting.task.num_steps,
            num_updates=setting.effort.recurrent_updates,
        ),
    ),
    "dagger": Attacker(
        "demonstrations, and what experts answer where it goes",
        lambda setting: Dagger(setting.task, setting.heads, _cloning(setting)),
        needs_experts=True,
    ),
    "mean_action": Attacker("all demonstrations", lambda setting: MeanAction(), continuous=True),
    "gaussian_mixture": Attacker(
        "all demonstrations", lambda setting: GaussianMixture(), continuous=True
    ),
}


def choose(names: Sequence[str], has_experts: bool) -> tuple[list[str], dict[str, str]]:
    """Observers that can run here, and those that cannot, with the reason.

    Raises:
      SettingError: no such observer, or none that can run.
    """
    runs, skipped = [], {}
    for name in names:
        if name not in ATTACKERS:
            raise SettingError(f"observers must be among {', '.join(ATTACKERS)}; got {name!r}")
        if ATTACKERS[name].continuous:
            skipped[name] = "is for continuous actions; this environment's are discrete"
        elif ATTACKERS[name].needs_experts and not has_experts:
            skipped[name] = "needs the experts; there are only demonstrations"
        else:
            runs.append(name)
    if not runs:
        reasons = "; ".join(f"{name} {reason}" for name, reason in skipped.items())
        raise SettingError(f"observers must hold one that can run here; {reasons}")
    return runs, skipped
