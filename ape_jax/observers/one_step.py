"""One step of improvement: the best first action, if the demonstrators go on after it."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from ape_jax.core.policies import TablePolicy
from ape_jax.demonstrations import episodes
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.observers import values
from ape_jax.observers.supported import Supported, SupportedPolicy
from ape_jax.observers.values import Units
from ape_jax.types import PRNGKey


@dataclasses.dataclass(frozen=True)
class OneStep(Supported):
    """Greedy on the demonstrators' own action values (Brandfonbrener et al., arXiv 2106.08909).

    It needs the order of steps, rewards and ends. Q(s, a) is the mean demonstrated return to go
    after action a in s, over complete episodes. Nothing is bootstrapped, so no error can grow, and
    the policy is no better than one step of policy iteration makes it. Against an ensemble it may
    be worse: returns tell how well the hidden expert goes on, and not only from where.
    """

    _: dataclasses.KW_ONLY
    gamma: float = 0.99
    """Discount of rewards in each step: where all episodes pay alike, the shorter way counts."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> SupportedPolicy | TablePolicy:
        """Fit Q by least squares, or by means where observations are finite."""
        weights = episodes.complete(demonstrations).astype(jnp.float32)
        returns = episodes.returns_to_go(demonstrations, demonstrations.reward, self.gamma)
        if self.networks.num_states is not None:
            return self.tabulate_scores(demonstrations, returns, weights)
        units = Units.of(returns, weights)

        def targets(rows) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
            return units.to_units(returns[rows]), weights[rows]

        networks = values.in_standard_units(self.networks)
        return self.fit_scores(key, networks, demonstrations, targets)
