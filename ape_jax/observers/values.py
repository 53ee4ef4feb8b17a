"""Networks that several attackers share, and the units that values are learned in."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ape_jax.demonstrations import episodes
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import MLP, Networks
from ape_jax.networks.modules import GaussianHead
from ape_jax.observers import fitting
from ape_jax.types import Params, PRNGKey


def in_standard_units(networks: Networks) -> Networks:
    """The same networks, which see vectors of continuous observations in standard units."""

    def normalizing(module: nn.Module) -> nn.Module:
        if isinstance(module, GaussianHead):
            return module.clone(body=normalizing(module.body))
        if isinstance(module, MLP) and module.num_states is None:
            return module.clone(normalize=True)
        return module

    head, critic = normalizing(networks.head), normalizing(networks.critic)
    return dataclasses.replace(networks, head=head, critic=critic)


def of_vectors(networks: Networks, num_features: int, hidden_sizes: tuple[int, ...]) -> Networks:
    """Networks whose head gives the same actions, from vectors in standard units."""
    size, continuous = networks.num_actions, networks.action_bounds is not None
    num_outputs = 2 * size if continuous else size
    head: nn.Module = MLP(num_outputs, hidden_sizes, "tanh", None, 0.01, normalize=True)
    if continuous:
        head = GaussianHead(size, head, std_of_state=True)
    shape = (num_features,)
    return dataclasses.replace(networks, head=head, num_states=None, observation_shape=shape)


def init(key: PRNGKey, module: nn.Module, demonstrations: Demonstrations) -> Params:
    """Parameters of a network of observations, with the statistics of the demonstrated ones."""
    return fitting.standardize(module.init(key, demonstrations.observation[0]), demonstrations)


@dataclasses.dataclass(frozen=True)
class ActionValues:
    """A network of one number for each observation and action.

    Where actions are discrete, it is a head whose outputs are the numbers of all actions. Where
    they are continuous, it is a critic of the observation and the action side by side, both in
    standard units.
    """

    networks: Networks

    def init(self, key: PRNGKey, demonstrations: Demonstrations) -> Params:
        """Parameters, with the statistics of the demonstrations."""
        if self.networks.action_bounds is None:
            return init(key, self.networks.head, demonstrations)
        pairs = _pairs(demonstrations.observation, demonstrations.action)
        return init(key, self.networks.critic, demonstrations._replace(observation=pairs))

    def __call__(
        self, params: Params, observation: Shaped[Array, "N ..."], action: Shaped[Array, "N ..."]
    ) -> Float[Array, " N"]:
        """The number of each observation and action."""
        if self.networks.action_bounds is not None:
            return self.networks.value(params, _pairs(observation, action))
        outputs = jnp.asarray(self.networks.head.apply(params, observation))
        taken = jnp.arange(outputs.shape[-1])[None] == action[:, None]
        return jnp.sum(jnp.where(taken, outputs, 0.0), axis=-1)


def _pairs(
    observation: Shaped[Array, "N ..."], action: Float[Array, "N D"]
) -> Float[Array, "N features"]:
    flat = observation.reshape(len(observation), -1).astype(jnp.float32)
    return jnp.concatenate([flat, action], axis=-1)


class Units(NamedTuple):
    """A value is the centre, plus so many units. Networks learn the number of units."""

    centre: Float[Array, ""]
    unit: Float[Array, ""]

    @classmethod
    def of(cls, values: Float[Array, " N"], weights: Float[Array, " N"] | None = None) -> "Units":
        """Mean and standard deviation of weighted values; the unit is one where they are equal.

        The centre is zero where nothing weighs anything.
        """
        weights = jnp.ones(len(values)) if weights is None else weights
        total = jnp.maximum(jnp.sum(weights), 1e-9)
        centre = jnp.sum(weights * values) / total
        deviation = jnp.sqrt(jnp.sum(weights * jnp.square(values - centre)) / total)
        equal = deviation <= 1e-5 * (1.0 + jnp.abs(centre))
        return cls(centre, jnp.where(equal, 1.0, deviation))

    def to_units(self, values: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """The number of units that values are above the centre."""
        return (values - self.centre) / self.unit

    def from_units(self, outputs: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """The values that are so many units above the centre."""
        return self.centre + self.unit * outputs


def of_returns(demonstrations: Demonstrations, gamma: float) -> Units:
    """Units of the demonstrated discounted returns to go."""
    return Units.of(episodes.returns_to_go(demonstrations, demonstrations.reward, gamma))


def log_probs(
    networks: Networks,
    head: Params,
    observation: Shaped[Array, "N ..."],
    action: Shaped[Array, "N ..."],
) -> Float[Array, " N"]:
    """Log π(action|observation) of one head at each step."""
    policies = networks.distribution(head, observation)
    return jax.vmap(lambda policy, action: policy.log_prob(action))(policies, action)
