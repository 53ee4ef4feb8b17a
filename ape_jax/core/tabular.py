"""Exact quantities of finite MDPs, differentiable. A policy [S, A] holds probabilities π(a|s)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from ape_jax.core import mixture, platform
from ape_jax.settings.names import ObserverWeights

exact_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
"""Products in the full precision of float32, for every result that is called exact.

Without it a TPU rounds the factors to bfloat16, and a GPU to TF32: returns on the paper's grid are
then wrong by up to 3. The precision is an argument of each product, so that its gradients have it,
and so that it holds under ``jit`` and ``vmap`` wherever the product is traced.
"""


@struct.dataclass
class FiniteMDP:
    """A finite Markov decision process with a time limit."""

    transition: Float[Array, "S A S"]
    """P(s'|s, a)."""
    reward: Float[Array, "S A"]
    """Expected reward of action a in state s."""
    start: Float[Array, " S"]
    """Distribution of the first state."""
    terminal: Bool[Array, " S"]
    """States in which the task has ended: they pay no reward and are never left."""
    horizon: int = struct.field(pytree_node=False)
    """Time limit H of an episode, in steps."""

    @property
    def num_states(self) -> int:
        """Number of states (S)."""
        return self.reward.shape[0]

    @property
    def num_actions(self) -> int:
        """Number of actions (A)."""
        return self.reward.shape[1]

    def mean_over_starts(self, values: Float[Array, "*batch S"]) -> Float[Array, "*batch"]:
        """Mean of a quantity of states over the distribution of the first state."""
        return exact_einsum("s,...s->...", self.start, values)


def state_values(mdp: FiniteMDP, policy: Float[Array, "S A"]) -> Float[Array, " S"]:
    """Undiscounted return from each state with all H steps left, by H backward steps.

        V_h(s) = Σ_a π(a|s) [ r(s, a) + Σ_s' P(s'|s, a) V_{h−1}(s') ]

    A terminal state has the value zero.
    """
    rewards, moves = _under(mdp, policy)
    if platform.forms().doubling:
        return _power_series(moves, rewards, mdp.horizon)[0]

    def backward(values, _):
        return rewards + exact_einsum("st,t->s", moves, values), None

    values, _ = jax.lax.scan(backward, jnp.zeros_like(rewards), length=mdp.horizon)
    return values


def policy_return(mdp: FiniteMDP, policy: Float[Array, "S A"]) -> Float[Array, ""]:
    """J(π): expected undiscounted return of an episode."""
    return mdp.mean_over_starts(state_values(mdp, policy))


def optimal_action_values(mdp: FiniteMDP) -> Float[Array, "S A"]:
    """Q*(s, a): return of an action that the best actions follow, with all H steps left."""
    alive = ~mdp.terminal

    def action_values(values):
        return mdp.reward + exact_einsum("sat,t->sa", mdp.transition, values)

    def backward(values, _):
        return jnp.max(action_values(values), axis=-1) * alive, None

    values, _ = jax.lax.scan(backward, jnp.zeros(mdp.num_states), length=mdp.horizon - 1)
    return action_values(values)


def optimal_policy(mdp: FiniteMDP) -> Float[Array, "S A"]:
    """The policy that is greedy for Q* with all H steps left; ties share the probability evenly.

    It is optimal where every start can reach its goal well before the time limit. Otherwise the
    best action may depend on the number of steps left.
    """
    action_values = optimal_action_values(mdp)
    best = action_values >= jnp.max(action_values, axis=-1, keepdims=True) - 1e-5
    return best / jnp.sum(best, axis=-1, keepdims=True)


def state_occupancy(mdp: FiniteMDP, policy: Float[Array, "S A"]) -> Float[Array, " S"]:
    """Expected visits of each state that is not terminal in an episode, by H forward steps.

        d(s) = E Σ_{t<H} 1{s_t = s, s_t not terminal}

    The sum over states is the expected length of an episode, in steps.
    """
    return _push(mdp, mdp.start, _under(mdp, policy)[1])[0]


def reach_limit(mdp: FiniteMDP, policy: Float[Array, "S A"]) -> Float[Array, " S"]:
    """Probability that the time limit cuts an episode in each state that is not terminal.

    The sum over states is ε, the share of episodes that are truncated.
    """
    return _push(mdp, mdp.start, _under(mdp, policy)[1])[1]


def observer_weights(
    mdp: FiniteMDP, policies: Float[Array, "E S A"], weights: ObserverWeights
) -> Float[Array, "S E"]:
    """Weights log w_c(s) in each state: uniform, or the exact posterior from the occupancies."""
    num_experts, num_states, _ = policies.shape
    if weights == "uniform":
        return jnp.tile(mixture.uniform_log_weights(num_experts), (num_states, 1))
    occupancies = jax.vmap(state_occupancy, in_axes=(None, 0))(mdp, policies)
    return jax.vmap(mixture.posterior_log_weights, in_axes=1)(occupancies)


def exact_objective(
    logits: Float[Array, "E S A"],
    mdp: FiniteMDP,
    beta: Float[Array, ""] | float,
    *,
    weights: ObserverWeights = "uniform",
    temperature: Float[Array, ""] | float = 1.0,
    differentiate_weights: bool = False,
    observer_reward: Float[Array, "S A"] | None = None,
) -> Float[Array, ""]:
    """J(PE) − β J(π_o) without sampling (paper, Eq. 3).

    Args:
      logits: every expert's logits in every state.
      mdp: the process.
      beta: β ≥ 0.
      weights: how the observer models the expert given the state.
      temperature: T; the observer deploys π_o^(1/T), normalised.
      differentiate_weights: whether gradients flow through w_c(s) too, unlike in sampled training.
      observer_reward: r̃(s, a), the reward in J(π_o) (paper, section 6); None means the experts'.
    """
    log_probs = jax.nn.log_softmax(logits)
    policies = jnp.exp(log_probs)
    log_weights = observer_weights(mdp, policies, weights)
    if not differentiate_weights:
        log_weights = jax.lax.stop_gradient(log_weights)
    observer = jax.vmap(mixture.observer_log_probs, in_axes=(1, 0, None))(
        log_probs, log_weights, temperature
    )
    observer_reward = mdp.reward if observer_reward is None else observer_reward

    def return_for(reward, policy):
        return policy_return(dataclasses.replace(mdp, reward=reward), policy)

    # Experts and observer at once take half as many steps as one after the other.
    returns = jax.vmap(return_for)(
        jnp.stack([mdp.reward] * len(policies) + [observer_reward]),
        jnp.concatenate([policies, jnp.exp(observer)[None]]),
    )
    return jnp.mean(returns[:-1]) - beta * returns[-1]


def cloning_floor(mdp: FiniteMDP, policies: Float[Array, "E S A"]) -> Float[Array, ""]:
    """A lower bound on the return of the ideal sampling clone of the pooled experts.

    The ideal clone plays π_o with posterior weights. Without a time limit its state-action
    occupancy is the average of the experts', so its return is J(PE). With a time limit, let a
    stopped clone stop on arrival in s with probability k(s), the share of the experts' arrivals
    there that the limit cuts off. It has the experts' average occupancy again, so its return is
    J(PE), and it stops with probability ε, the share of expert episodes that reach the limit. The
    clone itself differs from it in two ways. Where the stopped clone stops, the clone goes on, for
    at most H steps. At step H the clone is cut, and the stopped clone may go on. Therefore, with
    r⁻ = max(0, −min r) and r⁺ = max(0, max r),

        J(clone) ≥ J(PE) − r⁻ H ε − r⁺ · E[steps of the stopped clone beyond H].

    For a reward of −1 in each step this is J(PE) − H ε. Returns are undiscounted. The clone is a
    function of the state, and has the horizon and the starts of the experts.
    """
    occupancies, cuts, returns = (
        jax.vmap(quantity, in_axes=(None, 0))(mdp, policies)
        for quantity in (state_occupancy, reach_limit, policy_return)
    )
    occupancy, cut = jnp.mean(occupancies, axis=0), jnp.mean(cuts, axis=0)
    log_weights = jax.vmap(mixture.posterior_log_weights, in_axes=1)(occupancies)
    clone = exact_einsum("se,esa->sa", jnp.exp(log_weights), policies)

    arrivals = occupancy + cut
    goes_on = jnp.where(arrivals > 0, occupancy / jnp.maximum(arrivals, 1e-30), 1.0)
    _, moves = _under(mdp, clone)
    within_limit, _ = _push(mdp, goes_on * mdp.start, moves * goes_on[None, :])
    beyond_limit = jnp.maximum(jnp.sum(occupancy) - jnp.sum(within_limit), 0.0)

    rewards = jnp.where(mdp.terminal[:, None], 0.0, mdp.reward)
    worst = jnp.maximum(0.0, -jnp.min(rewards))
    best = jnp.maximum(0.0, jnp.max(rewards))
    truncated = jnp.sum(cut)
    return jnp.mean(returns) - worst * mdp.horizon * truncated - best * beyond_limit


def cloning_ceiling(mdp: FiniteMDP, policies: Float[Array, "E S A"]) -> Float[Array, ""]:
    """An upper bound on the return of the ideal sampling clone: minus its floor for the reward −r.

    In the symbols of ``cloning_floor``,

        J(clone) ≤ J(PE) + r⁺ H ε + r⁻ · E[steps of the stopped clone beyond H].
    """
    return -cloning_floor(dataclasses.replace(mdp, reward=-mdp.reward), policies)


def _under(
    mdp: FiniteMDP, policy: Float[Array, "S A"]
) -> tuple[Float[Array, " S"], Float[Array, "S S"]]:
    """Rewards under a policy, and its moves between states that are not terminal; else zero."""
    alive = ~mdp.terminal
    rewards = jnp.sum(policy * mdp.reward, axis=-1) * alive
    moves = exact_einsum("sa,sat->st", policy, mdp.transition)
    return rewards, moves * alive[:, None] * alive[None, :]


def _push(
    mdp: FiniteMDP, mass: Float[Array, " S"], moves: Float[Array, "S S"]
) -> tuple[Float[Array, " S"], Float[Array, " S"]]:
    """Move probability mass H steps, without terminal states: its sum over t < H, and mass at H."""
    mass = mass * ~mdp.terminal
    if platform.forms().doubling:
        return _power_series(moves.T, mass, mdp.horizon)

    def forward(carry, _):
        mass, total = carry
        return (exact_einsum("s,st->t", mass, moves), total + mass), None

    (mass, total), _ = jax.lax.scan(forward, (mass, jnp.zeros_like(mass)), length=mdp.horizon)
    return total, mass


def _power_series(
    matrix: Float[Array, "S S"], vector: Float[Array, " S"], horizon: int
) -> tuple[Float[Array, " S"], Float[Array, " S"]]:
    """Σ_{t<H} Mᵗ v and M^H v, by squaring matrices as often as H has binary digits.

        [[M, v], [0, 1]]^H = [[M^H, Σ_{t<H} Mᵗ v], [0, 1]]

    On accelerators log H products of matrices are faster than H products with a vector, up to about
    a thousand states.
    """
    unit = jnp.append(jnp.zeros_like(vector), 1.0)
    step = jnp.vstack([jnp.column_stack([matrix, vector]), unit])
    total = _power_times(step, unit, horizon)
    last = _power_times(step, jnp.append(vector, 0.0), horizon)
    return total[:-1], last[:-1]


def _power_times(
    matrix: Float[Array, "S S"], vector: Float[Array, " S"], exponent: int
) -> Float[Array, " S"]:
    """M^n v by repeated squaring of M."""
    while exponent:
        if exponent % 2:
            vector = exact_einsum("st,t->s", matrix, vector)
        exponent //= 2
        if exponent:
            matrix = exact_einsum("st,tu->su", matrix, matrix)
    return vector
