"""Types that the whole package shares: axis letters, keys, one step, policies, and errors.

Axes, in every annotation and docstring:

    E  expert head                      A  discrete action
    B  parallel environment             S  state of a finite MDP
    T  time in a rollout                K  seed or setting, the outermost ``vmap``
    N  sample: a trajectory, or one step of pooled demonstrations
    G  block of trajectories of one policy
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Key, Shaped

from ape_jax.errors import DamagedError as DamagedError
from ape_jax.errors import NonFiniteError as NonFiniteError
from ape_jax.errors import RunError as RunError
from ape_jax.errors import SettingError as SettingError

PRNGKey = Key[Array, ""]
"""A typed key, made by ``jax.random.key``."""
Params = Any
"""Variables of a Flax module: a pytree of arrays."""
LogWeightsFn = Callable[[Shaped[Array, "..."]], Float[Array, " E"]]
"""Maps one observation to log w_c, the observer's belief about which expert acts."""


@runtime_checkable
class Policy(Protocol):
    """Anything that acts in an environment: a pytree with these two methods.

    The carry is a pytree with what the policy remembers of the episode; ``()`` where it remembers
    nothing.
    """

    def initial_carry(self) -> Any:
        """The carry before the first step of an episode."""
        ...

    def __call__(
        self, carry: Any, observation: Shaped[Array, "..."], last_action: Shaped[Array, "..."]
    ) -> tuple[Any, Any]:
        """The next carry, and the ``core.distributions.Distribution`` of the action.

        The last action is −1, in every dimension, at the first step of an episode.
        """
        ...


class Transition(NamedTuple):
    """One environment step, or a batch of them with leading axes such as ``[T, E, B]``."""

    observation: Shaped[Array, "..."]
    """The observation before the action."""
    action: Shaped[Array, "..."]
    """A number where actions are discrete, a vector [D] where they are continuous."""
    reward: Float[Array, "..."]
    """Zero after the end of the episode."""
    terminated: Bool[Array, "..."]
    """True where the task ended in this step."""
    truncated: Bool[Array, "..."]
    """True where the time limit cut the episode after this step."""
    mask: Bool[Array, "..."]
    """True up to and including the step that ends the episode, and False on the padding after."""
    next_observation: Shaped[Array, "..."]
    """The observation after this step, before any autoreset."""


RewardFn = Callable[[Transition], Float[Array, ""]]
"""Maps one step to a reward r̃ of it."""
