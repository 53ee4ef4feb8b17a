"""The vocabulary of every room: axis letters, keys, the record of a step, what a policy is.

Axes, in every annotation and docstring:

    E  expert head                      A  discrete action
    B  parallel environment             S  state of a finite MDP
    T  time in a rollout                K  seed or setting, the outermost ``vmap``
    N  sample: a trajectory, or one step of pooled demonstrations
    G  block of trajectories of one policy
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, Key, Shaped

PRNGKey = Key[Array, ""]
"""A typed key, made by ``jax.random.key``."""

Params = Any
"""Variables of a Flax module: a pytree of arrays."""

LogWeightsFn = Callable[[Shaped[Array, "..."]], Float[Array, " E"]]
"""The observer's model of the experts: one observation to log w_c."""

ObserverWeights = Literal["uniform", "posterior"]
"""The observer's model of the expert given the state: w_c = 1/E, or p(c|s)."""

ObserverName = Literal["uniform", "posterior", "learned", "none"]
"""The weights trained against: the same two, a classifier q(c|s) that is trained along, or no
observer at all."""

AlgorithmName = Literal["pg", "ppo"]
"""PG-APE over whole episodes, or PPO-APE over segments."""
ConstraintName = Literal["multipliers", "gate"]
"""What keeps experts at ``min_return``."""
StdName = Literal["constant", "state"]
"""What a Gaussian head's standard deviations depend on."""

CriticForm = Literal["separate", "shared"]
"""V_c and V_o learned apart, or one V_c regressed on both returns (paper, Eq. 4 as printed)."""

HeadName = Literal["tabular", "mlp", "conv", "gaussian"]
"""Kinds of expert heads."""
ActivationName = Literal["tanh", "relu"]
"""Nonlinearities of a head."""


class SettingError(ValueError):
    """A setting that breaks a rule: the message names setting, rule, value and fix.

    Raised before anything is traced or written; the command line turns it into exit code 2.
    """


class DamagedError(SettingError):
    """A file of a run is not what was saved."""


class RunError(RuntimeError):
    """A run that cannot go on: the message says why, and where it can be taken up again.

    The command line turns it into exit code 1.
    """


class NonFiniteError(RunError):
    """Training has gone astray."""


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

    observation: Shaped[Array, "*batch"]
    """What the actor saw before it acted."""
    action: Int[Array, "..."]
    """What it did."""
    reward: Float[Array, "..."]
    """Zero on steps that are not live."""
    terminated: Bool[Array, "..."]
    """The task ended here: nothing follows."""
    truncated: Bool[Array, "..."]
    """The time limit cut the episode here: more would have followed."""
    live: Bool[Array, "..."]
    """True up to and including the step that ends the episode."""
    next_observation: Shaped[Array, "*batch"]
    """What followed, before any autoreset: the last one of an episode is its true end."""


RewardFn = Callable[[Transition], Float[Array, ""]]
"""A reward r̃ of one step, of anything that the step holds."""
