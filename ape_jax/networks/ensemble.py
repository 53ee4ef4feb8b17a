"""Ensembles of heads and critics: modules of one expert, stacked over experts by ``vmap``."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ape_jax.config import TrainConfig
from ape_jax.core.distributions import Categorical, Gaussian, HeadDistribution
from ape_jax.envs import spaces
from ape_jax.envs.world import Bounds, action_bounds, finite_size
from ape_jax.networks.modules import MLP, Conv, GaussianHead, Table
from ape_jax.types import Params, PRNGKey, SettingError


class EnsembleParams(NamedTuple):
    """Parameters of an ensemble and its critics."""

    heads: Params
    """Stacked [E, …]."""
    expert_critics: Params
    """V_c, stacked [E, …]."""
    observer_critic: Params | None
    """V_o; None where the observer's term uses the experts' critics."""
    classifier: Params | None = None
    """q(c|s); None where the observer's weights are not learned."""


def with_statistics(params: Params, mean: Float[Array, " F"], scale: Float[Array, " F"]) -> Params:
    """Put statistics of raveled observations into every network that normalises.

    The scale is one over their standard deviation.
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
    """The policy of one expert."""
    critic: nn.Module
    num_experts: int
    num_actions: int
    """Discrete actions (A), or dimensions of a continuous one (D)."""
    observation_shape: tuple[int, ...]
    num_states: int | None
    """Size of a finite observation space (S); None for a continuous one."""
    shared_critic: bool
    """Whether one critic serves experts and observer."""
    classifier: nn.Module | None = None
    """q(c|s), where the observer's weights are learned."""
    action_bounds: Bounds | None = None
    """Lowest and highest continuous action [D]; None where actions are discrete."""

    def init(self, key: PRNGKey) -> EnsembleParams:
        """Draw parameters, each head and critic from its own key."""
        key_heads, key_critics, key_observer, key_classifier = jax.random.split(key, 4)
        dtype = jnp.float32 if self.num_states is None else jnp.int32
        observation = jnp.zeros(self.observation_shape, dtype)

        def stacked(module, key):
            keys = jax.random.split(key, self.num_experts)
            return jax.vmap(module.init, in_axes=(0, None))(keys, observation)

        return EnsembleParams(
            heads=stacked(self.head, key_heads),
            expert_critics=stacked(self.critic, key_critics),
            observer_critic=(
                None if self.shared_critic else self.critic.init(key_observer, observation)
            ),
            classifier=self.classifier and self.classifier.init(key_classifier, observation),
        )

    def log_probs(
        self, head: Params, observation: Shaped[Array, "..."]
    ) -> Float[Array, "*batch A"]:
        """One head's log π_c(·|observation)."""
        return jax.nn.log_softmax(jnp.asarray(self.head.apply(head, observation)))

    def distribution(self, head: Params, observation: Shaped[Array, "..."]) -> HeadDistribution:
        """One head's π_c(·|observation)."""
        if self.action_bounds is None:
            return Categorical(self.log_probs(head, observation))
        means, log_stds = jnp.split(jnp.asarray(self.head.apply(head, observation)), 2, axis=-1)
        low, high = (jnp.broadcast_to(jnp.asarray(x), means.shape) for x in self.action_bounds)
        half = 0.5 * (high - low)
        return Gaussian(0.5 * (low + high) + half * means, jnp.log(half) + log_stds)

    def distributions(self, heads: Params, observation: Shaped[Array, "..."]) -> HeadDistribution:
        """Every head's π_c(·|observation), stacked [E, …]."""
        return jax.vmap(self.distribution, in_axes=(0, None))(heads, observation)

    def expert_log_probs(
        self, heads: Params, observation: Shaped[Array, "..."]
    ) -> Float[Array, "E A"]:
        """Every head's log π_c(·|observation)."""
        return jax.vmap(self.log_probs, in_axes=(0, None))(heads, observation)

    def value(self, critic: Params, observation: Shaped[Array, "..."]) -> Float[Array, "*batch"]:
        """V(observation) of one critic."""
        return jnp.asarray(self.critic.apply(critic, observation))[..., 0]

    def observer_values(
        self, params: EnsembleParams, observation: Shaped[Array, "..."]
    ) -> Float[Array, " V"]:
        """Baselines of the observer's term: V_o alone, or every V_c where there is no V_o."""
        if params.observer_critic is None:
            return jax.vmap(self.value, in_axes=(0, None))(params.expert_critics, observation)
        return self.value(params.observer_critic, observation)[None]

    def expert_log_weights(
        self, classifier: Params, observation: Shaped[Array, "..."]
    ) -> Float[Array, "*batch E"]:
        """The classifier's log q(·|observation)."""
        assert self.classifier is not None
        return jax.nn.log_softmax(jnp.asarray(self.classifier.apply(classifier, observation)))

    @jax.default_matmul_precision("highest")
    def tabulate_experts(self, heads: Params) -> Float[Array, "E S A"]:
        """Every head's log π_c(·|s) in every state of a finite observation space."""
        return jax.vmap(lambda head: jax.nn.log_softmax(self._everywhere(self.head, head)))(heads)

    def _everywhere(self, module: nn.Module, params: Params) -> Float[Array, "S outputs"]:
        """Outputs in every state; the modules of this package need no look-ups for them."""
        if isinstance(module, Table | MLP):
            return jnp.asarray(module.apply(params, None))
        states = jnp.arange(self.num_states, dtype=jnp.int32)
        return jnp.asarray(jax.vmap(module.apply, (None, 0))(params, states))

    def tabulate_critics(
        self, params: EnsembleParams
    ) -> tuple[Float[Array, "E S"], Float[Array, "S V"]]:
        """V_c(s) of every expert, and the baselines of the observer's term, in every state."""

        def everywhere(critic):
            return self._everywhere(self.critic, critic)[:, 0]

        experts = jax.vmap(everywhere)(params.expert_critics)
        if params.observer_critic is None:
            return experts, experts.T
        return experts, everywhere(params.observer_critic)[:, None]

    def tabulate_log_weights(self, classifier: Params) -> Float[Array, "S E"]:
        """The classifier's log q(·|s) in every state."""
        assert self.classifier is not None
        return jax.nn.log_softmax(self._everywhere(self.classifier, classifier))

    @jax.default_matmul_precision("highest")
    def tabulate(self, function: Callable) -> Callable:
        """The same function of one observation, as a table where there are finitely many states.

        A rollout or a loss asks for the same few states again and again. To look the values up,
        instead of applying a network to each, is what makes both fast.
        """
        if self.num_states is None:
            return function
        table = jax.vmap(function)(jnp.arange(self.num_states, dtype=jnp.int32))
        return lambda state: jax.tree.map(lambda rows: rows[state], table)


def make_networks(
    config: TrainConfig, observation_space: spaces.Space, action_space: spaces.Space
) -> Networks:
    """Make heads and critics that fit the spaces of an environment.

    Raises:
      SettingError: the head does not fit the spaces.
    """
    _check_spaces(config, observation_space, action_space)
    num_states = finite_size(observation_space)
    scale = 1.0 if config.head == "tabular" else config.init_scale

    def body(num_outputs: int, scale: float) -> nn.Module:
        if config.head == "tabular" and num_states is not None:
            return Table(num_states, num_outputs, scale)
        shape = (num_outputs, config.hidden_sizes, config.activation)
        if config.head == "conv":
            return Conv(*shape, scale)
        axes = len(observation_space.shape)
        return MLP(*shape, num_states, scale, config.normalize_observations, axes)

    bounds = None
    if config.head == "gaussian":
        size = action_space.shape[0]
        of_state = config.std == "state"
        head: nn.Module = GaussianHead(size, body((1 + of_state) * size, scale), of_state)
        bounds = action_bounds(action_space)
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


OBSERVATIONS = {
    "tabular": ("states",),
    "mlp": ("states", "vectors"),
    "conv": ("images",),
    "gaussian": ("vectors",),
}
"""Kinds of observations that each head can take."""


def _check_spaces(
    config: TrainConfig, observation_space: spaces.Space, action_space: spaces.Space
) -> None:
    """Check that heads can take the observations and give the actions."""
    which, head = f"env={config.env!r}", f"head={config.head!r}"
    discrete = isinstance(action_space, spaces.Discrete)
    if not discrete and not (isinstance(action_space, spaces.Box) and len(action_space.shape) == 1):
        raise SettingError(
            f"env must have discrete actions or vectors of continuous ones; {which} has "
            f"{action_space}"
        )
    if not isinstance(observation_space, spaces.Discrete | spaces.Box):
        raise SettingError(
            f"env must have a Discrete or Box observation space; {which} has {observation_space}"
        )
    shape = tuple(observation_space.shape)
    finite, is_image = isinstance(observation_space, spaces.Discrete), len(shape) == 3
    kind = "states" if finite else "images" if is_image else "vectors"
    fitting = ("conv" if is_image else "mlp") if discrete else "gaussian"
    advice = "" if fitting == config.head else f". Use head={fitting!r}"
    if discrete and config.head == "gaussian":
        raise SettingError(f"{head} needs continuous actions; {which} has discrete ones{advice}")
    if not discrete and config.head != "gaussian":
        raise SettingError(
            f"{head} needs a discrete action space; {which} has continuous actions "
            f"of shape {action_space.shape}{advice} with algorithm='ppo'"
        )
    if kind not in OBSERVATIONS[config.head]:
        raise SettingError(
            f"{head} needs observations that are {' or '.join(OBSERVATIONS[config.head])}; "
            f"{which} has {kind} of shape {shape}{advice}"
        )
    if is_image and min(shape[:2]) < 3:
        raise SettingError(f"{head} needs images of at least 3 x 3; {which} has shape {shape}")
    if config.normalize_observations and kind != "vectors":
        raise SettingError(
            f"normalize_observations needs observations that are vectors; {which} has {kind}"
        )
