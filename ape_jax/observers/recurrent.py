"""An observer with memory: a recurrent policy of the history of an episode (paper, Eq. 6).

The same expert acts through a whole episode, so the actions so far help to predict the next one.
The ideal clone of this kind repeats the distribution of whole episodes.
"""

import dataclasses
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped

from ape_jax.core.distributions import Categorical
from ape_jax.demonstrations import episodes
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import Networks
from ape_jax.observers import fitting
from ape_jax.types import Params, PRNGKey


class RecurrentHead(nn.Module):
    """A gated recurrent unit over observations and the actions before them, with memory [H]."""

    num_actions: int
    hidden_size: int
    num_states: int | None
    """Size of a finite observation space; None for a continuous one."""

    @nn.compact
    def __call__(
        self,
        memory: Float[Array, " H"],
        observation: Shaped[Array, "..."],
        last_action: Int[Array, ""],
    ) -> tuple[Float[Array, " H"], Float[Array, " A"]]:
        """The next memory, and the logits of the actions; last action −1 at the first step."""
        if self.num_states is None:
            inputs = nn.Dense(self.hidden_size)(jnp.ravel(observation).astype(jnp.float32))
        else:
            embed = nn.Embed(
                self.num_states, self.hidden_size, embedding_init=nn.initializers.normal(1.0)
            )
            inputs = embed(observation)
        acted = nn.Embed(self.num_actions + 1, self.hidden_size)(last_action + 1)
        memory, hidden = nn.GRUCell(self.hidden_size)(memory, nn.tanh(inputs + acted))
        return memory, nn.Dense(self.num_actions)(jnp.concatenate([hidden, nn.tanh(inputs)]))


@struct.dataclass
class RecurrentPolicy:
    """The policy π(·|history) of a recurrent head."""

    params: Params
    head: RecurrentHead = struct.field(pytree_node=False)

    def initial_carry(self) -> Float[Array, " H"]:
        """The memory before an episode."""
        return jnp.zeros(self.head.hidden_size)

    def __call__(self, carry, observation, last_action) -> tuple[Float[Array, " H"], Categorical]:
        """The next memory, and the distribution of the action."""
        memory, logits = cast(
            tuple[Array, Array], self.head.apply(self.params, carry, observation, last_action)
        )
        return memory, Categorical(jax.nn.log_softmax(logits))


@dataclasses.dataclass(frozen=True)
class Recurrent(fitting.Training):
    """Behaviour cloning of whole episodes by a recurrent network, with held-out early stopping."""

    networks: Networks
    """The experts' networks, whose spaces the clone takes over."""
    horizon: int
    """Longest episode, in steps."""
    hidden_size: int = 32
    num_rows: int = 8192
    """Largest number of pieces of episodes to learn from: the first ones are taken."""
    max_length: int = 32
    """Steps of a piece. In training the memory starts anew with each piece; the fitted clone
    remembers its whole episode."""
    _: dataclasses.KW_ONLY
    num_updates: int = 1000
    batch_size: int = 64
    """Pieces of an update."""
    learning_rate: float = 1e-2

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> RecurrentPolicy:
        """Minimise −Σ_t log π(a_t|s_0, a_0 … s_t) over episodes."""
        key_init, key_updates = jax.random.split(key)
        networks = self.networks
        head = RecurrentHead(networks.num_actions, self.hidden_size, networks.num_states)
        length = min(self.max_length, self.horizon)
        pieces, last, mask, _ = episodes_of(demonstrations, self.num_rows, length)
        kept = fitting.held_out(pieces)[:, 0] & mask[:, 0]
        shown = mask & ~kept[:, None]
        kept = mask & (kept | ~jnp.any(kept))[:, None]
        # Rows that exist come first. To draw only among them wastes no update.
        num_shown = jnp.maximum(jnp.sum(mask[:, 0]), 1)
        first = jax.tree.map(lambda x: x[0, 0], (pieces.observation, last))

        def cross_entropy(params, rows, weights):
            policy = RecurrentPolicy(params, head)

            def of_episode(actions, *inputs):
                _, acts = jax.lax.scan(lambda m, x: policy(m, *x), policy.initial_carry(), inputs)
                return jax.vmap(Categorical.log_prob)(acts, actions)

            picked = (pieces.action[rows], pieces.observation[rows], last[rows])
            taken = jax.vmap(of_episode)(*picked)
            return -jnp.sum(weights[rows] * taken) / jnp.maximum(jnp.sum(weights[rows]), 1.0)

        def loss(params, key):
            rows = jax.random.randint(key, (self.batch_size,), 0, num_shown)
            return cross_entropy(params, rows, shown)

        tested = jnp.argsort(~kept[:, 0])[:512]
        params = self.minimize(
            key_updates,
            head.init(key_init, jnp.zeros(head.hidden_size), *first),
            loss,
            lambda params: cross_entropy(params, tested, kept),
        )
        return RecurrentPolicy(params, head)


class Rows(NamedTuple):
    """Episodes as rows of equal length; a longer episode continues in the next row."""

    steps: Demonstrations
    """Steps [M, T, …]."""
    last_action: Int[Array, "M T"]
    """Action before each step; −1 at the first of an episode."""
    mask: Bool[Array, "M T"]
    """Which entries are steps."""
    begins: Bool[Array, " M"]
    """Which rows begin an episode."""


def episodes_of(demonstrations: Demonstrations, num_rows: int, length: int) -> Rows:
    """Arrange the first episodes in M rows of T steps; rows that are not needed are empty."""
    num_steps = len(demonstrations.episode)
    index = jnp.arange(num_steps)
    begins = episodes.begins(demonstrations)
    since = index - jax.lax.cummax(jnp.where(begins, index, 0))
    starts_row = since % length == 0
    row = jnp.cumsum(starts_row) - 1
    (starts,) = jnp.nonzero(starts_row, size=num_rows, fill_value=num_steps)
    steps = starts[:, None] + jnp.arange(length)[None]
    inside = jnp.minimum(steps, num_steps - 1)
    mask = (steps < num_steps) & (row[inside] == jnp.arange(num_rows)[:, None])
    return Rows(
        steps=jax.tree.map(lambda x: x[inside], demonstrations),
        last_action=episodes.last_actions(demonstrations)[inside],
        mask=mask,
        begins=mask[:, 0] & begins[inside[:, 0]],
    )
