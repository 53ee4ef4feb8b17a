"""Expert heads and critics: Flax modules of one expert, stacked over experts by ``vmap``."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces
from jaxtyping import Array, Float, Shaped

from ape_jax.config import TrainConfig
from ape_jax.core.distributions import Categorical, Distribution, Gaussian
from ape_jax.networks.modules import MLP, Conv, GaussianHead, Table
from ape_jax.types import Params, PRNGKey, SettingError


class EnsembleParams(NamedTuple):
    """Parameters of an ensemble and its critics."""

    heads: Params
    """[E, …]."""
    expert_critics: Params
    """[E, …]: V_c."""
    observer_critic: Params | None
    """V_o; None where the observer's term uses the experts' critics."""
    classifier: Params | None = None
    """Of q(c|s); None where the observer's weights are not learned."""


def with_statistics(params: Params, mean: Float[Array, " F"], scale: Float[Array, " F"]) -> Params:
    """The same parameters with these statistics of observations in every network that normalises.

    Args:
      params: of one network or several.
      mean: of observations, raveled.
      scale: one over their standard deviation.
    """

    def replace(path, leaf):
        names = [getattr(entry, "key", None) for entry in path]
        if "statistics" not in names:
            return leaf
        value = mean if names[-1] == "mean" else scale
        return jnp.broadcast_to(value.reshape(*[1] * (leaf.ndim - value.ndim), -1), leaf.shape)

    return jax.tree_util.tree_map_with_path(replace, params)


@dataclasses.dataclass(frozen=True)
class Networks:
    """The static half of an ensemble: what its parameters mean. Hashable."""

    head: nn.Module
    """One expert's policy."""
    critic: nn.Module
    """One value function."""
    num_experts: int
    """Heads (E)."""
    num_actions: int
    """Discrete actions, or dimensions of a continuous one."""
    observation_shape: tuple[int, ...]
    """Of one observation."""
    num_states: int | None
    """Size of a finite observation space; None for a continuous one."""
    shared_critic: bool
    """Whether one critic serves experts and observer."""
    classifier: nn.Module | None = None
    """q(c|s), where the observer's weights are learned."""
    action_bounds: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Lowest and highest continuous action [D]; None where actions are discrete."""
    last_layer: str | None = None
    """Name of the only layer that heads do not share; None where they share none."""

    @property
    def num_uniforms(self) -> int:
        """Numbers that an action, of an expert or of a clone, is drawn from."""
        return 1 if self.action_bounds is None else self.num_actions + 1

    def init(self, key: PRNGKey) -> EnsembleParams:
        """Draw parameters, each head and critic from its own key."""
        key_heads, key_critics, key_observer, key_classifier = jax.random.split(key, 4)
        dtype = jnp.float32 if self.num_states is None else jnp.int32
        observation = jnp.zeros(self.observation_shape, dtype)
        stacked = jax.vmap(nn.Module.init, in_axes=(None, 0, None))
        heads = stacked(self.head, jax.random.split(key_heads, self.num_experts), observation)
        return EnsembleParams(
            heads=self._map_trunk(lambda x: jnp.broadcast_to(x[:1], x.shape), heads),
            expert_critics=stacked(
                self.critic, jax.random.split(key_critics, self.num_experts), observation
            ),
            observer_critic=(
                None if self.shared_critic else self.critic.init(key_observer, observation)
            ),
            classifier=(
                self.classifier.init(key_classifier, observation) if self.classifier else None
            ),
        )

    def log_probs(self, head: Params, observation: Shaped[Array, "..."]) -> Float[Array, " A"]:
        """One head's log π_c(·|observation)."""
        return jax.nn.log_softmax(jnp.asarray(self.head.apply(head, observation)))

    def policy(self, head: Params, observation: Shaped[Array, "..."]) -> Distribution:
        """One head's π_c(·|observation)."""
        if self.action_bounds is None:
            return Categorical(self.log_probs(head, observation))
        low, high = jnp.asarray(self.action_bounds)
        means, log_stds = jnp.split(jnp.asarray(self.head.apply(head, observation)), 2)
        half = 0.5 * (high - low)
        return Gaussian(0.5 * (low + high) + half * means, jnp.log(half) + log_stds)

    def legal(self, actions: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """What the environment is given of actions: those of a Gaussian within their bounds."""
        if self.action_bounds is None:
            return actions
        low, high = jnp.asarray(self.action_bounds)
        return jnp.clip(actions, *(x.reshape(*[1] * (actions.ndim - 1), -1) for x in (low, high)))

    def policies(self, heads: Params, observation: Shaped[Array, "..."]) -> Distribution:
        """Every head's π_c(·|observation), stacked [E]; a shared trunk is applied once."""
        axes = self._map_trunk(lambda _: None, jax.tree.map(lambda _: 0, heads))
        heads = self._map_trunk(lambda x: x[0], heads)
        return jax.vmap(self.policy, in_axes=(axes, None))(heads, observation)

    def tie(self, gradients: Params) -> Params:
        """Gradients of heads [E, …] with those of every layer that is shared added up."""
        return self._map_trunk(
            lambda x: jnp.broadcast_to(jnp.sum(x, axis=0, keepdims=True), x.shape), gradients
        )

    def once(self, heads: Params) -> Params:
        """Leaves of heads [E, …], with a single copy of what is shared."""
        return self._map_trunk(lambda x: x[:1], heads)

    def _map_trunk(self, function: Callable, heads: Params) -> Params:
        """Apply to the leaves of heads that are shared, which each head has a copy of."""
        if self.last_layer is None:
            return heads

        def apply(path, leaf):
            names = {getattr(entry, "key", None) for entry in path}
            return leaf if names & {self.last_layer, "log_std"} else function(leaf)

        return jax.tree_util.tree_map_with_path(apply, heads)

    def expert_log_probs(
        self, heads: Params, observation: Shaped[Array, "..."]
    ) -> Float[Array, "E A"]:
        """Every head's log π_c(·|observation)."""
        return jax.vmap(self.log_probs, in_axes=(0, None))(heads, observation)

    def value(self, critic: Params, observation: Shaped[Array, "..."]) -> Float[Array, ""]:
        """V(observation) of one critic."""
        return jnp.asarray(self.critic.apply(critic, observation))[0]

    def observer_values(
        self, params: EnsembleParams, observation: Shaped[Array, "..."]
    ) -> Float[Array, " V"]:
        """Baselines of the observer's term: V_o alone, or every V_c where it shares them."""
        if params.observer_critic is None:
            return jax.vmap(self.value, in_axes=(0, None))(params.expert_critics, observation)
        return self.value(params.observer_critic, observation)[None]

    def expert_log_weights(
        self, classifier: Params, observation: Shaped[Array, "..."]
    ) -> Float[Array, " E"]:
        """The classifier's log q(·|observation)."""
        assert self.classifier is not None
        return jax.nn.log_softmax(jnp.asarray(self.classifier.apply(classifier, observation)))

    def tabulate_experts(self, heads: Params) -> Float[Array, "E S A"]:
        """Every head's log π_c(·|s) in every state of a finite observation space."""
        states = jnp.arange(self.num_states, dtype=jnp.int32)
        at_states = jax.vmap(self.log_probs, in_axes=(None, 0))
        return jax.vmap(at_states, in_axes=(0, None))(heads, states)

    def tabulate(self, function: Callable) -> Callable:
        """The same function of an observation, evaluated once a state where states are finite.

        A rollout or a loss asks for the same few states again and again; looking them up instead of
        applying a network to each is what makes both fast.
        """
        if self.num_states is None:
            return function
        table = jax.vmap(function)(jnp.arange(self.num_states, dtype=jnp.int32))
        return lambda state: jax.tree.map(lambda rows: rows[state], table)


def make_networks(
    config: TrainConfig, observation_space: spaces.Space, action_space: spaces.Space
) -> Networks:
    """Heads and critics that fit an environment's spaces.

    Raises:
      SettingError: spaces that the head cannot take.
    """
    _check_spaces(config, observation_space, action_space)
    finite = isinstance(observation_space, spaces.Discrete)
    num_states = int(observation_space.n) if finite else None
    continuous = config.head == "gaussian"
    # Whole returns tell heads apart by how they start; clipped steps would have to undo it first.
    scale = 0.01 if config.algorithm == "ppo" and config.head != "tabular" else 1.0

    def body(num_outputs: int, scale: float) -> nn.Module:
        if config.head == "tabular" and num_states is not None:
            return Table(num_states, num_outputs, scale)
        shape = (num_outputs, config.hidden_sizes, config.activation)
        if config.head == "conv":
            return Conv(*shape, scale)
        return MLP(*shape, num_states, scale, config.normalize_observations)

    bounds = None
    if continuous:
        size = action_space.shape[0]
        of_state = config.std == "state"
        head: nn.Module = GaussianHead(size, body((1 + of_state) * size, scale), of_state)
        bounds = _bounds(action_space)
    else:
        size = int(action_space.n)
        head = body(size, scale)
    return Networks(
        head=head,
        critic=body(1, scale=0.0),
        num_experts=config.num_experts,
        num_actions=size,
        observation_shape=tuple(observation_space.shape),
        num_states=num_states,
        shared_critic=config.critic == "shared",
        classifier=body(config.num_experts, scale=0.0) if config.observer == "learned" else None,
        action_bounds=bounds,
    )


def _check_spaces(
    config: TrainConfig, observation_space: spaces.Space, action_space: spaces.Space
) -> None:
    """Whether heads can take observations and give actions; raises ``SettingError``."""
    which = f"env={config.env!r}"
    discrete = isinstance(action_space, spaces.Discrete)
    vector = isinstance(action_space, spaces.Box) and len(action_space.shape) == 1
    if not discrete and not vector:
        raise SettingError(
            f"env must have discrete actions or vectors of continuous ones; {which} has "
            f"{action_space}"
        )
    if discrete and config.head == "gaussian":
        raise SettingError(f"head='gaussian' needs continuous actions; {which} has discrete ones")
    if not discrete and config.head != "gaussian":
        raise SettingError(
            f"head={config.head!r} needs a discrete action space; {which} has continuous actions "
            f"of shape {action_space.shape}. Use head='gaussian' with algorithm='ppo'"
        )
    if not isinstance(observation_space, spaces.Discrete | spaces.Box):
        raise SettingError(
            f"head={config.head!r} needs a Discrete or Box observation space; {which} "
            f"has {observation_space}"
        )
    shape = tuple(observation_space.shape)
    finite = isinstance(observation_space, spaces.Discrete)
    if config.head == "tabular" and not finite:
        raise SettingError(
            f"head='tabular' needs a finite observation space; {which} has "
            f"a continuous one of shape {shape}. Use head='{'conv' if len(shape) == 3 else 'mlp'}'"
        )
    if (config.head == "conv") != (len(shape) == 3):
        fitting = "conv" if len(shape) == 3 else "mlp" if discrete else "gaussian"
        raise SettingError(
            f"head={config.head!r} does not fit observations of shape {shape}, which {which} has. "
            f"Use head={fitting!r}"
        )
    if config.head == "gaussian" and finite:
        raise SettingError(
            f"head='gaussian' needs observations that are vectors; {which} has states"
        )
    if config.head == "conv" and min(shape[:2]) < 3:
        raise SettingError(
            f"head='conv' needs images of at least 3 x 3; {which} has {shape[0]} x {shape[1]}"
        )
    if config.normalize_observations and (finite or config.head == "conv"):
        raise SettingError(
            f"normalize_observations needs observations that are vectors; {which} has "
            f"{'states' if finite else 'images'}"
        )


def _bounds(space: spaces.Box) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Lowest and highest action [D]; −1 and 1 where there is no bound."""
    low, high = np.broadcast_to(space.low, space.shape), np.broadcast_to(space.high, space.shape)
    bounded = np.isfinite(low) & np.isfinite(high)
    low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    return tuple(map(float, low)), tuple(map(float, high))
