import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_mdp
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from ape_jax.core import mixture, platform, tabular
from ape_jax.envs import GridWorld

FORMS = ("cpu", "gpu")
"""The platforms of both forms: H steps one after another, and repeated squaring."""
seeds = st.integers(0, 10_000)
RETURN, OCCUPANCY, LIMIT, BEST, floor_of = map(
    jax.jit,
    (
        tabular.policy_return,
        tabular.state_occupancy,
        tabular.reach_limit,
        tabular.optimal_policy,
        tabular.cloning_floor,
    ),
)
EACH_RETURN = jax.jit(jax.vmap(tabular.policy_return, (None, 0)))
OBJECTIVE = jax.jit(tabular.exact_objective, static_argnames=("weights", "differentiate_weights"))


def random_policy(seed, mdp, num_experts=None):
    shape = (mdp.num_states, mdp.num_actions)
    shape = shape if num_experts is None else (num_experts, *shape)
    return jax.nn.softmax(2.0 * jax.random.normal(jax.random.key(seed), shape))


def enumerate_paths(mdp, policy):
    """Return and occupancy by pushing probability through every step, in NumPy, term by term."""
    transition, reward, start = (
        np.asarray(x, np.float64) for x in (mdp.transition, mdp.reward, mdp.start)
    )
    terminal, policy = np.asarray(mdp.terminal), np.asarray(policy, np.float64)
    mass, total, occupancy = start.copy(), 0.0, np.zeros(len(start))
    for _ in range(mdp.horizon):
        moved = np.zeros_like(mass)
        for s in range(len(mass)):
            if terminal[s]:
                continue
            occupancy[s] += mass[s]
            for a in range(policy.shape[1]):
                total += mass[s] * policy[s, a] * reward[s, a]
                moved += mass[s] * policy[s, a] * transition[s, a]
        mass = moved
    return total, occupancy, mass * ~terminal


@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from([1, 6, 100]), st.sampled_from(FORMS))
def test_return_occupancy_and_limit_equal_an_enumeration(seed, horizon, name):
    mdp = random_mdp(seed, horizon=horizon)
    policy = random_policy(seed + 1, mdp)
    total, occupancy, cut = enumerate_paths(mdp, policy)
    with platform.tracing_for(name):
        np.testing.assert_allclose(RETURN(mdp, policy), total, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(OCCUPANCY(mdp, policy), occupancy, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(LIMIT(mdp, policy), cut, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("horizon", [1, 2, 7, 100])
def test_derivatives_of_an_episode_equal_a_loop_in_double_precision(name, horizon):
    """Along a random direction. The tangent of M^t v is carried beside it, step by step."""
    mdp, random = random_mdp(3, horizon=horizon), np.random.default_rng(0)
    policy = np.asarray(random_policy(4, mdp), np.float64)
    change = random.normal(size=policy.shape)
    alive = ~np.asarray(mdp.terminal)
    transition, reward, start = (
        np.asarray(x, np.float64) for x in (mdp.transition, mdp.reward, mdp.start)
    )
    moves, moves_change = (
        np.einsum("sa,sat->st", x, transition) * alive[:, None] * alive for x in (policy, change)
    )
    rewards, rewards_change = ((x * reward).sum(axis=-1) for x in (policy, change))
    mass, mass_change = start * alive, np.zeros_like(start)
    visits_change, return_change = np.zeros_like(start), 0.0
    for _ in range(horizon):
        visits_change += mass_change
        return_change += mass_change @ rewards + mass @ rewards_change
        mass, mass_change = mass @ moves, mass_change @ moves + mass @ moves_change
    expected = (return_change, visits_change, mass_change)
    with platform.tracing_for(name):
        for function, derivative in zip((RETURN, OCCUPANCY, LIMIT), expected, strict=True):
            arguments = (jnp.asarray(x, jnp.float32) for x in (policy, change))
            _, forward = jax.jvp(lambda x, f=function: f(mdp, x), *((x,) for x in arguments))
            scale = np.abs(derivative).max() + 1e-6
            np.testing.assert_allclose(forward, derivative, rtol=1e-4, atol=1e-4 * scale)


def test_both_forms_have_the_same_objective_and_gradient_on_the_paper_grid():
    """One hundred steps, also through the posterior weights of the observer."""
    mdp = GridWorld().finite_mdp()
    logits = jax.random.normal(jax.random.key(0), (2, mdp.num_states, mdp.num_actions))
    found = []
    for name in FORMS:
        with platform.tracing_for(name):
            objective = functools.partial(
                OBJECTIVE, weights="posterior", temperature=0.3, differentiate_weights=True
            )
            found.append(jax.value_and_grad(objective)(logits, mdp, 0.3))
    (value, gradient), (other, other_gradient) = found
    np.testing.assert_allclose(value, other, rtol=1e-5)
    largest = float(jnp.abs(gradient).max())
    np.testing.assert_allclose(gradient, other_gradient, atol=1e-4 * largest)


def test_occupancy_sums_to_the_expected_length_of_an_episode(small_mdp, random_policies):
    """Every step of the grid costs one, so length and return are the same number."""
    for policy in random_policies:
        length = jnp.sum(OCCUPANCY(small_mdp, policy))
        assert length == pytest.approx(-float(RETURN(small_mdp, policy)), rel=1e-5)


def test_optimal_policy_of_the_paper_grid_returns_the_mean_distance():
    mdp = GridWorld().finite_mdp()
    # From the corner, Σ (row + column) over a 10 × 10 grid is 900, shared by 99 starts.
    ours = RETURN(mdp, BEST(mdp))
    assert ours == pytest.approx(-900 / 99, rel=1e-5)


def test_optimal_policy_with_one_step_left_takes_the_reward_at_hand():
    """Action 0 pays now and ends; action 1 pays nothing now and much later."""
    stay, end = jax.nn.one_hot(jnp.arange(2), 2)
    for horizon, best in ((1, 0), (5, 1)):
        mdp = tabular.FiniteMDP(
            transition=jnp.stack([jnp.stack([end, stay]), jnp.stack([end, end])]),
            reward=jnp.array([[1.0, 0.6], [0.0, 0.0]]),
            start=stay,
            terminal=jnp.array([False, True]),
            horizon=horizon,
        )
        assert int(jnp.argmax(BEST(mdp)[0])) == best


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_no_policy_beats_the_optimal_one_on_the_grid(seed):
    mdp = GridWorld(size=3, goal=(1, 1), horizon=12).finite_mdp()
    best = RETURN(mdp, BEST(mdp))
    assert RETURN(mdp, random_policy(seed, mdp)) <= best + 1e-4


def test_exact_objective_is_the_penalised_difference(small_mdp, random_policies):
    logits = jnp.log(random_policies)
    experts = EACH_RETURN(small_mdp, random_policies)
    observer = RETURN(small_mdp, jnp.mean(random_policies, axis=0))
    ours = OBJECTIVE(logits, small_mdp, 0.3)
    assert ours == pytest.approx(float(jnp.mean(experts) - 0.3 * observer), rel=1e-5)


def test_exact_objective_of_one_expert_has_the_same_observer_for_both_weights(small_mdp):
    logits = jnp.log(random_policy(3, small_mdp, num_experts=1))
    uniform, posterior = (
        OBJECTIVE(logits, small_mdp, 0.5, weights=weights, temperature=0.5)
        for weights in ("uniform", "posterior")
    )
    assert uniform == pytest.approx(float(posterior), rel=1e-5)


@pytest.mark.parametrize("weights", ["uniform", "posterior"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("name", FORMS)
def test_exact_objective_gradient_equals_finite_differences(weights, temperature, name):
    mdp = random_mdp(11)
    with jax.enable_x64(True), platform.tracing_for(name):
        mdp = jax.tree.map(
            lambda x: jnp.asarray(np.asarray(x), x.dtype if x.dtype == bool else float), mdp
        )
        logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)))

        def objective(logits):
            return OBJECTIVE(
                *(jnp.asarray(logits), mdp, 0.4),
                weights=weights,
                temperature=temperature,
                differentiate_weights=True,
            )

        check_grads(objective, (logits,), order=1, modes=("rev",), eps=1e-5)


def test_exact_objective_vmaps_over_logits_and_beta(small_mdp):
    logits = jnp.log(jnp.stack([random_policy(seed, small_mdp, 2) for seed in range(3)]))
    betas = jnp.array([0.0, 0.5, 1.0])
    ours = jax.vmap(OBJECTIVE, (0, None, 0))(logits, small_mdp, betas)
    expected = [OBJECTIVE(x, small_mdp, b) for x, b in zip(logits, betas, strict=True)]
    np.testing.assert_allclose(ours, jnp.stack(expected), rtol=1e-5)


@jax.jit
def ideal_clone_return(mdp, policies):
    weights = jnp.exp(tabular.observer_weights(mdp, policies, "posterior"))
    return RETURN(mdp, jnp.einsum("se,esa->sa", weights, policies))


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([1, 2, 4]))
def test_ideal_sampling_clone_never_falls_below_the_floor(seed, num_experts):
    """The theorem, on processes with rewards of both signs and a limit that binds."""
    mdp = random_mdp(seed)
    policies = random_policy(seed + 1, mdp, num_experts)
    assert ideal_clone_return(mdp, policies) >= floor_of(mdp, policies) - 1e-4


def test_floor_is_the_ensemble_return_minus_horizon_times_truncated_share(
    small_mdp, random_policies
):
    returns = EACH_RETURN(small_mdp, random_policies)
    cut = jax.vmap(LIMIT, (None, 0))(small_mdp, random_policies)
    share = jnp.sum(cut) / len(random_policies)
    assert 0.05 < share < 0.95  # The limit matters here.
    ours = floor_of(small_mdp, random_policies)
    assert ours == pytest.approx(float(jnp.mean(returns) - small_mdp.horizon * share), rel=1e-4)


def test_floor_counts_rewards_that_the_clone_reaches_too_late():
    """Two cells and a goal that pays one. Expert 1 leaves by the right cell, expert 2 by the left.

    Both arrive within the limit of two steps, so no episode is truncated. The clone leaves either
    cell with probability 2/3: it arrives in time with probability 8/9, and without a limit it would
    take (1/3)² + (1/3)³ + … = 1/6 steps more.
    """
    left, right, goal = jax.nn.one_hot(jnp.arange(3), 3)
    cross, leave = 0, 1
    mdp = tabular.FiniteMDP(
        transition=jnp.stack(
            [jnp.stack([right, goal]), jnp.stack([left, goal]), jnp.stack([goal] * 2)]
        ),
        reward=jnp.zeros((3, 2)).at[:2, leave].set(1.0),
        start=jnp.array([0.5, 0.5, 0.0]),
        terminal=jnp.array([False, False, True]),
        horizon=2,
    )
    policies = jax.nn.one_hot(jnp.array([[cross, leave, leave], [leave, cross, leave]]), 2)
    assert ideal_clone_return(mdp, policies) == pytest.approx(8 / 9, rel=1e-5)
    assert floor_of(mdp, policies) == pytest.approx(1 - 1 / 6, rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from(FORMS))
def test_floor_follows_from_the_stopped_clone_of_the_proof(seed, name):
    """The proof's construction in NumPy: its occupancy is the experts', and the floor follows."""
    mdp = random_mdp(seed)
    policies = np.asarray(random_policy(seed + 1, mdp, 2), np.float64)
    returns, occupancies, cuts = (
        np.array(x) for x in zip(*(enumerate_paths(mdp, p) for p in policies), strict=True)
    )
    occupancy, cut = occupancies.mean(axis=0), cuts.mean(axis=0)
    weights = occupancies / np.maximum(occupancies.sum(axis=0), 1e-12)
    clone = np.einsum("es,esa->sa", weights, policies)
    moves = np.einsum("sa,sat->st", clone, np.asarray(mdp.transition, np.float64))
    alive = ~np.asarray(mdp.terminal)
    moves = moves * alive[:, None] * alive[None, :]
    goes_on = np.where(alive, occupancy / np.maximum(occupancy + cut, 1e-12), 0.0)
    stopped, start = moves * goes_on, np.asarray(mdp.start, np.float64) * goes_on
    unlimited = np.linalg.solve(np.eye(len(start)) - stopped.T, start)
    np.testing.assert_allclose(unlimited, occupancy, rtol=1e-4, atol=1e-6)
    mass, within = start.copy(), np.zeros_like(start)
    for _ in range(mdp.horizon):
        within, mass = within + mass, mass @ stopped
    reward = np.asarray(mdp.reward, np.float64)[alive]
    worst, best = max(0.0, -reward.min()), max(0.0, reward.max())
    expected = returns.mean() - worst * mdp.horizon * cut.sum() - best * (unlimited - within).sum()
    with platform.tracing_for(name):
        ours = floor_of(mdp, jnp.asarray(policies, jnp.float32))
    assert ours == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_ideal_sampling_clone_recovers_the_ensemble_when_no_episode_is_truncated():
    mdp = GridWorld(size=3, goal=(0, 0), horizon=1000).finite_mdp()
    policies = 0.5 * random_policy(5, mdp, num_experts=3) + 0.1  # No trap that lasts.
    returns = EACH_RETURN(mdp, policies)
    assert ideal_clone_return(mdp, policies) == pytest.approx(float(jnp.mean(returns)), rel=1e-3)
    assert floor_of(mdp, policies) == pytest.approx(float(jnp.mean(returns)), rel=1e-3)


def test_uniform_mixture_can_fall_below_the_floor():
    """Why the paper's observer is no bound on a real one: its weights are not p(c|s)."""
    mdp = GridWorld(size=3, goal=(0, 0), horizon=400).finite_mdp()
    # Expert 1 goes up first and then left, expert 2 left first and then up; where its own road
    # never leads, each turns back towards the other's.
    up, down, left = 0, 1, 2
    first = np.full(9, up)
    first[[1, 2]] = left
    second = np.full(9, left)
    second[[3, 6]] = up
    first[[3, 6]] = down  # Only the second expert comes here on its way, and only by its own road.
    starts_elsewhere = np.asarray(mdp.start).copy()
    starts_elsewhere[[3, 6]] = 0.0
    mdp = mdp.replace(start=jnp.asarray(starts_elsewhere / starts_elsewhere.sum()))
    policies = jax.nn.one_hot(jnp.array([first, second]), 5)
    floor = floor_of(mdp, policies)
    assert ideal_clone_return(mdp, policies) >= floor - 1e-3
    assert RETURN(mdp, jnp.mean(policies, axis=0)) < floor - 0.3


def test_dual_ascent_on_exact_gradients_holds_every_expert_above_the_constraint(small_mdp):
    """Eq. 2 on a small grid: both experts end at α or above, and the clone below both."""
    import optax

    from ape_jax.core import objective

    alpha = -3.2  # Optimal is −1.9.
    optimizer = optax.adam(0.05)

    def returns_of(logits):
        policies = jax.nn.softmax(logits)
        experts = EACH_RETURN(small_mdp, policies)
        return experts, RETURN(small_mdp, jnp.mean(policies, axis=0))

    def step(carry, _):
        logits, opt_state, multipliers = carry
        gradient = jax.grad(lambda x: -objective.dual_objective(*returns_of(x), multipliers))(
            logits
        )
        changes, opt_state = optimizer.update(gradient, opt_state)
        logits = optax.apply_updates(logits, changes)
        experts, _ = returns_of(logits)
        multipliers = objective.dual_step(multipliers, experts, alpha, 0.05)
        return (logits, opt_state, multipliers), None

    logits = jax.random.normal(jax.random.key(0), (2, 9, 5))
    carry = (logits, optimizer.init(logits), jnp.ones(2))
    (logits, _, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=1000))(carry)
    experts, clone = returns_of(logits)
    assert np.all(np.asarray(experts) >= alpha - 0.1)
    assert clone < jnp.min(experts) - 1.0


def test_second_reward_enters_the_observers_term_alone(small_mdp):
    logits = jax.random.normal(jax.random.key(0), (2, 9, 5))
    reward = jax.random.normal(jax.random.key(1), (9, 5))
    policies = jax.nn.softmax(logits)
    experts = EACH_RETURN(small_mdp, policies)
    clone = RETURN(small_mdp.replace(reward=reward), jnp.mean(policies, axis=0))
    ours = OBJECTIVE(logits, small_mdp, 0.7, observer_reward=reward)
    np.testing.assert_allclose(ours, jnp.mean(experts) - 0.7 * clone, rtol=1e-5)
    own = OBJECTIVE(logits, small_mdp, 0.7, observer_reward=small_mdp.reward)
    assert own == OBJECTIVE(logits, small_mdp, 0.7)


def test_posterior_weights_of_states_that_nobody_reaches_are_uniform(small_mdp):
    stay = jnp.zeros((2, 9, 5)).at[..., 4].set(1.0)
    moved = small_mdp.replace(start=jax.nn.one_hot(8, 9))
    weights = jnp.exp(tabular.observer_weights(moved, stay, "posterior"))
    np.testing.assert_allclose(weights, 0.5, rtol=1e-5)


def test_observer_weights_uniform_match_the_mixture_module(small_mdp, random_policies):
    ours = tabular.observer_weights(small_mdp, random_policies, "uniform")
    np.testing.assert_allclose(ours[4], mixture.uniform_log_weights(3), rtol=1e-6)
