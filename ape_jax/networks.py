"""Expert heads and critics: Flax modules of one expert, stacked over experts by ``vmap``."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from gymnax.environments import spaces
from jaxtyping import Array, Float, Int, Shaped

from ape_jax.config import TrainConfig
from ape_jax.types import Params, PRNGKey, SettingError

_ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu}


class Table(nn.Module):
    """One row of outputs for each state of a finite observation space."""

    num_states: int
    num_outputs: int
    scale: float
    """Standard deviation at the start; heads that start alike stay alike."""

    @nn.compact
    def __call__(self, state: Int[Array, ""]) -> Float[Array, " outputs"]:
        """The state's row."""
        shape = (self.num_states, self.num_outputs)
        return self.param("table", nn.initializers.normal(self.scale), shape)[state]


class MLP(nn.Module):
    """Hidden layers over a finite or a continuous observation space.

    A finite observation is one-hot, so the first layer is an embedding, drawn N(0, 1). No layer has
    biases then: a bias moves the outputs of every state at once, a direction in which all heads
    agree and that a policy gradient falls into before the heads have parted.
    """

    num_outputs: int
    hidden_sizes: tuple[int, ...]
    activation: str
    num_states: int | None
    """Size of a finite observation space; None for a continuous one."""
    scale: float
    """Of the orthogonal output layer at the start."""

    @nn.compact
    def __call__(self, observation: Shaped[Array, "..."]) -> Float[Array, " outputs"]:
        """Outputs at one observation."""
        activation = _ACTIVATIONS[self.activation]
        first, *rest = self.hidden_sizes
        biases = self.num_states is None
        if self.num_states is None:
            hidden = nn.Dense(first)(jnp.ravel(observation).astype(jnp.float32))
        else:
            embedding = nn.Embed(self.num_states, first, embedding_init=nn.initializers.normal(1.0))
            hidden = embedding(observation)
        hidden = activation(hidden)
        for width in rest:
            hidden = activation(nn.Dense(width, use_bias=biases)(hidden))
        initializer = nn.initializers.orthogonal(self.scale)
        return nn.Dense(self.num_outputs, use_bias=biases, kernel_init=initializer)(hidden)


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


@dataclasses.dataclass(frozen=True)
class Networks:
    """The static half of an ensemble: what its parameters mean. Hashable."""

    head: nn.Module
    critic: nn.Module
    num_experts: int
    num_actions: int
    observation_shape: tuple[int, ...]
    num_states: int | None
    """Size of a finite observation space; None for a continuous one."""
    shared_critic: bool
    classifier: nn.Module | None = None
    """q(c|s), where the observer's weights are learned."""

    def init(self, key: PRNGKey) -> EnsembleParams:
        """Draw parameters, each head and critic from its own key."""
        key_heads, key_critics, key_observer, key_classifier = jax.random.split(key, 4)
        dtype = jnp.float32 if self.num_states is None else jnp.int32
        observation = jnp.zeros(self.observation_shape, dtype)
        stacked = jax.vmap(nn.Module.init, in_axes=(None, 0, None))
        return EnsembleParams(
            heads=stacked(self.head, jax.random.split(key_heads, self.num_experts), observation),
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
    if not isinstance(action_space, spaces.Discrete):
        raise SettingError(
            f"head={config.head!r} needs a discrete action space; env={config.env!r} has "
            f"{action_space}. Choose an environment with discrete actions"
        )
    if not isinstance(observation_space, spaces.Discrete | spaces.Box):
        raise SettingError(
            f"head={config.head!r} needs a Discrete or Box observation space; env={config.env!r} "
            f"has {observation_space}"
        )
    finite = isinstance(observation_space, spaces.Discrete)
    num_states = int(observation_space.n) if finite else None
    if config.head == "tabular" and num_states is None:
        raise SettingError(
            f"head='tabular' needs a finite observation space; env={config.env!r} has "
            f"a continuous one of shape {observation_space.shape}. Use head='mlp'"
        )

    def body(num_outputs: int, scale: float) -> nn.Module:
        if config.head == "tabular" and num_states is not None:
            return Table(num_states, num_outputs, scale)
        return MLP(num_outputs, config.hidden_sizes, config.activation, num_states, scale)

    num_actions = int(action_space.n)
    return Networks(
        head=body(num_actions, scale=1.0),
        critic=body(1, scale=0.0),
        num_experts=config.num_experts,
        num_actions=num_actions,
        observation_shape=tuple(observation_space.shape),
        num_states=num_states,
        shared_critic=config.critic == "shared",
        classifier=body(config.num_experts, scale=0.0) if config.observer == "learned" else None,
    )
