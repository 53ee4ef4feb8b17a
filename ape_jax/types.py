"""Types that the whole package shares: axis letters, keys, one step, policies, and errors.

Axes, in every annotation and docstring:

    E  expert head                      A  discrete action
    B  parallel environment             S  state of a finite MDP
    T  time in a rollout                K  seed or setting, the outermost ``vmap``
    N  sample: a trajectory, or one step of pooled demonstrations
    G  block of trajectories of one policy
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Key, Shaped

PRNGKey = Key[Array, ""]
"""A typed key, made by ``jax.random.key``."""
Params = Any
"""Variables of a Flax module: a pytree of arrays."""
LogWeightsFn = Callable[[Shaped[Array, "..."]], Float[Array, " E"]]
"""Maps one observation to log w_c, the observer's belief about which expert acts."""

ObserverWeights = Literal["uniform", "posterior"]
"""The observer's model of the expert given the state: w_c = 1/E, or w_c = p(c|s)."""
PGObserverName = Literal["uniform", "posterior", "learned"]
ObserverName = Literal["uniform", "posterior", "learned", "none"]
"""Weights of the observer trained against: the same two, a classifier q(c|s) that is trained
along, or no observer at all."""
AlgorithmName = Literal["pg", "ppo"]
"""PG-APE over whole episodes, or PPO-APE over rollouts of fixed length."""
ConstraintName = Literal["multipliers", "gate"]
"""Methods that keep the experts at ``min_return``."""
StdName = Literal["constant", "state"]
"""Whether a Gaussian head's standard deviations are constant or depend on the state."""
CriticForm = Literal["separate", "shared"]
"""V_c and V_o are learned apart, or V_c is regressed on both returns (paper, Eq. 4 as printed)."""
HeadName = Literal["tabular", "mlp", "conv", "gaussian"]
PGHeadName = Literal["tabular", "mlp", "conv"]
"""Kinds of expert heads that PG-APE can train."""
ActivationName = Literal["tanh", "relu"]


class SettingError(ValueError):
    """A setting breaks a rule; the message names the setting, the rule, the value and the fix.

    On the command line it becomes exit code 2.
    """


class DamagedError(SettingError):
    """A file of a run differs from what was saved."""


class RunError(RuntimeError):
    """A run cannot go on; the message says why, and from where it can be resumed.

    On the command line it becomes exit code 1.
    """


class NonFiniteError(RunError):
    """A number in training is not finite."""


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
