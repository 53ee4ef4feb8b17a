"""Cloning without seeing actions: they are inferred from what they did."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from ape_jax.demonstrations import collect, episodes
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.envs.world import World
from ape_jax.networks import Networks
from ape_jax.observers import fitting, values
from ape_jax.observers.behaviour_cloning import BehaviourCloning, TabularCloning
from ape_jax.types import Policy, PRNGKey


@runtime_checkable
class _Observer(Protocol):
    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> Policy: ...


@dataclasses.dataclass(frozen=True)
class FromObservations:
    """Inverse dynamics, and then any observer (BCO: Torabi et al., arXiv 1805.01954).

    First it acts at random, and learns which action led from one observation to the next. By that
    it gives an action to each demonstrated step, drawn in proportion to its probability. The
    demonstrated actions and rewards are not used.
    """

    world: World
    networks: Networks
    """The experts' networks, whose spaces the model takes over."""
    observer: _Observer
    """The observer that gets the demonstrations with inferred actions."""
    num_steps: int = 100_000
    """Random steps to learn from."""
    num_updates: int = 2000
    """Updates of the model, where observations are not finite."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> Policy:
        """Act at random, infer the actions, and let the observer have them."""
        key_act, key_model, key_draw, key_fit = jax.random.split(key, 4)
        world, constant = self.world, self.world.random_policy().constant.for_sampling()
        practised, _ = collect.pool(key_act, world, lambda *_: constant, 1, self.num_steps)
        model = self._fit_model(key_model, practised)
        num_steps = len(demonstrations.action)
        uniforms = jax.random.uniform(key_draw, (num_steps, self.world.num_uniforms))

        def infer(step):
            features, uniforms = step
            return model.distribution(features).sample(uniforms)

        inputs = (self._features(demonstrations), uniforms)
        actions = world.clip_action(jax.lax.map(infer, inputs, batch_size=4096))
        return self.observer.fit(
            key_fit,
            demonstrations._replace(action=actions, reward=jnp.zeros(num_steps)),
        )

    def _fit_model(self, key: PRNGKey, practised: Demonstrations) -> Any:
        """A policy of the features of a step: its action, given what followed."""
        labelled = practised._replace(observation=self._features(practised))
        states = self.networks.num_states
        if states is not None:
            num_kinds = states * (states + 2)
            return TabularCloning(num_kinds, self.networks.num_actions).fit(key, labelled)
        networks = values.of_vectors(self.networks, labelled.observation.shape[-1], (64, 64))
        cloning = BehaviourCloning(
            networks, num_updates=self.num_updates, batch_size=256, learning_rate=5e-3
        )
        return cloning.fit(key, labelled)

    def _features(self, demonstrations: Demonstrations) -> Shaped[Array, "N ..."]:
        """Each step without its action: the observation, the next one, and whether the task ended.

        Finite ones are numbered; the end and an unknown successor count as two more states.
        """
        after = episodes.following(demonstrations)
        states = self.networks.num_states
        if states is not None:
            known = jnp.where(after.known, after.observation, states + 1)
            following = jnp.where(after.ended, states, known)
            return demonstrations.observation * (states + 2) + following
        here = fitting.flat_observations(demonstrations)
        later = fitting.flat_observations(demonstrations._replace(observation=after.observation))
        there = jnp.where((after.known & ~after.ended)[:, None], later, here)
        ended = after.ended[:, None].astype(jnp.float32)
        return jnp.concatenate([here, there - here, ended], axis=-1)
