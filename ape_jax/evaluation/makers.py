"""Observers that suit an environment: by counts or by networks, with the effort of an audit."""

import dataclasses
from typing import Any

from ape_jax.config import TrainConfig
from ape_jax.evaluation.effort import Setting
from ape_jax.networks import Networks, make_networks
from ape_jax.observers import (
    AdvantageWeighted,
    BehaviourCloning,
    FromObservations,
    ImplicitQ,
    LatentCloning,
    Limited,
    Observer,
    OfflineQ,
    ShortestPath,
    TabularCloning,
    TabularLatent,
    TimeToEnd,
)

BATCH_SIZE = 256
"""Steps of demonstrations in an update of a network."""


def network(setting: Setting, config: TrainConfig | None = None) -> Networks:
    """One head of the experts' kind, or of another config's."""
    world = setting.task.world
    config = config or setting.task.config.with_state_std()
    return make_networks(config, world.observation_space, world.action_space)


def cloning(setting: Setting) -> TabularCloning | BehaviourCloning:
    """Cloning by counts where observations are finite, else by a network."""
    networks = setting.task.networks
    if networks.num_states is not None:
        return TabularCloning(networks.num_states, networks.num_actions)
    return BehaviourCloning(network(setting), **training(setting), learning_rate=5e-3)


def training(setting: Setting) -> dict[str, Any]:
    """Settings of all fits of networks."""
    return {"num_updates": setting.effort.fit_updates, "batch_size": BATCH_SIZE}


def limited(setting: Setting) -> Limited:
    """Cloning of the first steps by an MLP with one hidden layer."""
    effort, config = setting.effort, setting.task.config
    if config.head == "conv":
        return Limited(cloning(setting), effort.limited_steps)
    head = "gaussian" if config.head == "gaussian" else "mlp"
    config = dataclasses.replace(config, head=head, hidden_sizes=(effort.limited_width,))
    small = network(setting, config.with_state_std())
    return Limited(
        BehaviourCloning(small, num_updates=effort.fit_updates // 2), effort.limited_steps
    )


def latent(setting: Setting) -> Observer:
    """Exact expectation maximisation where observations are finite, else by networks."""
    networks, effort = setting.task.networks, setting.effort
    if networks.num_states is None:
        return LatentCloning(network(setting), num_updates=effort.fit_updates // 8, batch_size=512)
    return TabularLatent(
        networks.num_states, networks.num_actions, num_restarts=effort.latent_restarts
    )


def advantage_weighted(setting: Setting) -> Observer:
    """Cloning in which better actions count more, with the same cloner as elsewhere."""
    return AdvantageWeighted(cloning(setting), network(setting), **training(setting))


def offline_q(setting: Setting) -> Observer:
    """Q-iteration where observations are finite, else implicit Q-learning."""
    networks = setting.task.networks
    if networks.num_states is None:
        return ImplicitQ(network(setting), num_updates=setting.effort.fit_updates * 5 // 2)
    return OfflineQ(networks.num_states, networks.num_actions, setting.task.world.horizon)


def shortest_path(setting: Setting) -> Observer:
    """The shortest path that was seen where observations are finite, else the time to the end."""
    networks = setting.task.networks
    if networks.num_states is None:
        return TimeToEnd(network(setting), **training(setting))
    return ShortestPath(networks.num_states, networks.num_actions, setting.task.world.horizon)


def from_observations(setting: Setting) -> dict[str, Observer]:
    """Observers that get inferred actions: a cloner, and a planner where actions are discrete."""
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
