import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from probes import Probe

from ape_jax import algorithms
from ape_jax.algorithms import ppo, ppo_epochs, ppo_loss, ppo_state
from ape_jax.algorithms.task import make_task
from ape_jax.config import PPOConfig, PPOHypers
from ape_jax.core import platform, tabular
from ape_jax.evaluation import returns
from ape_jax.networks import observer_policy, with_statistics
from ape_jax.types import SettingError, Transition

GAMMA = 0.9
CONFIG = PPOConfig(
    num_experts=1,
    observer="none",
    envs_per_expert=8,
    rollout_length=32,
    num_updates=150,
)
HYPERS = PPOHypers(
    beta=0.0,
    learning_rate=0.05,
    critic_learning_rate=0.05,
    gamma=GAMMA,
    lr_end_fraction=0.0,
    max_grad_norm=0.5,
)


@functools.partial(jax.vmap, in_axes=(None, 0))
def values_and_policies(task, params):
    """The first expert's values [seeds, S] and policies [seeds, S, A]."""
    head, critic = jax.tree.map(lambda x: x[0], (params.heads, params.expert_critics))
    states = jnp.arange(2)
    log_probs = jax.vmap(task.networks.log_probs, (None, 0))(head, states)
    return jax.vmap(task.networks.value, (None, 0))(critic, states), jnp.exp(log_probs)


ANY = np.nan
PROBES = {
    # name: rewards [S, A], length, clock, V(0), V(1), best action in states 0 and 1
    "one step": ([[1, 1], [1, 1]], 1, False, 1.0, 1.0, None),
    "two steps": ([[1, 1], [1, 1]], 2, True, GAMMA, 1.0, None),
    "observation matters": ([[-1, -1], [1, 1]], 1, False, -1.0, 1.0, None),
    "action matters": ([[-1, 1], [-1, 1]], 1, False, 1.0, 1.0, (1, 1)),
    "both matter": ([[1, 0], [0, 1]], 1, False, 1.0, 1.0, (0, 1)),
    "no end but the limit": ([[1, 1], [1, 1]], 0, False, 10.0, 10.0, None),
    # Steps 1 to 4 look alike, and nothing is bootstrapped after the reward of the fifth, although
    # the limit falls there too: V(0) = γ^4.
    "end at the limit": ([[1, 1], [1, 1]], 5, True, GAMMA**4, ANY, None),
}


@pytest.fixture(scope="module")
def probed():
    """Values and policies [probes, seeds, …] after training on every probe, in one program."""
    env = Probe(None, limit=5)

    def train_on(table, length, clock, key):
        params = env.params.replace(table=table, length=length, clock=clock)
        return algorithms.make_train(CONFIG, env, params)(key, HYPERS)[0].params

    run = jax.vmap(jax.vmap(train_on, (None, None, None, 0)), (0, 0, 0, None))
    tables, lengths, clocks = map(jnp.array, list(zip(*PROBES.values(), strict=True))[:3])
    params = jax.jit(run)(
        tables.astype(float), lengths, clocks, jax.random.split(jax.random.key(0), 2)
    )
    task = make_task(CONFIG, env)
    return jax.vmap(lambda params: values_and_policies(task, params))(params)


@pytest.mark.parametrize("name", PROBES)
def test_values_and_policies_of_probes_are_exact(name, probed):
    values, policies = (np.asarray(x[list(PROBES).index(name)]) for x in probed)
    *_, first, second, best = PROBES[name]
    for state, known in enumerate((first, second)):
        if known is not ANY:
            np.testing.assert_allclose(values[:, state], known, atol=0.05)
    if best is not None:
        assert np.all(policies[:, [0, 1], best] > 0.95)


@pytest.fixture(scope="module")
def gaussian():
    """A task with continuous actions and normalised observations, and two seeds trained on it."""
    env = Probe(lambda s, a: -jnp.sum((a - 0.5 * s) ** 2), length=1, continuous=True)
    config = dataclasses.replace(
        CONFIG,
        head="gaussian",
        hidden_sizes=(16,),
        normalize_rewards=True,
        normalize_observations=True,
    )
    hypers = dataclasses.replace(HYPERS, learning_rate=0.01)
    run = jax.jit(jax.vmap(algorithms.make_train(config, env), (0, None)))
    return make_task(config, env), *run(jax.random.split(jax.random.key(0), 2), hypers)


def test_gaussian_head_finds_the_best_action_of_each_state(gaussian):
    task, state, metrics = gaussian
    for sign in (-1.0, 1.0):
        policy = jax.vmap(task.networks.distribution, (0, None))(
            jax.tree.map(lambda x: x[:, 0], state.params.heads), jnp.array([sign])
        )
        np.testing.assert_allclose(policy.mean, 0.5 * sign, atol=0.1)
    assert np.all(np.asarray(metrics.entropy[:, -1]) < np.asarray(metrics.entropy[:, 0]) - 0.5)


def test_statistics_reach_every_network(gaussian):
    _, state, _ = gaussian
    statistics = state.params.heads["statistics"]["body"]["Normalize_0"]
    np.testing.assert_allclose(statistics["mean"], 0.0, atol=0.2)
    np.testing.assert_allclose(statistics["scale"], 1.0, atol=0.1)
    assert np.all(np.asarray(statistics["mean"]) != 0.0)
    changed = with_statistics(state.params, jnp.array([3.0]), jnp.array([0.5]))
    for network in (changed.heads, changed.expert_critics):
        means = [
            leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(network)
            if path[-1].key == "mean"
        ]
        assert len(means) == 1
        np.testing.assert_array_equal(means[0], 3.0)


ACTION = Probe(lambda s, a: 2.0 * a - 1.0, length=1)


@pytest.fixture(scope="module")
def train_observed():
    """Final parameters and late returns of two seeds, with one expert that the observer copies."""

    @functools.cache
    def compiled(constraint):
        config = dataclasses.replace(
            CONFIG, observer="uniform", num_updates=300, constraint=constraint
        )
        return jax.jit(jax.vmap(algorithms.make_train(config, ACTION), (0, None)))

    def run(constraint, **changes):
        # Without the bonus an expert now and then ends where it never tries the good action again.
        hypers = dataclasses.replace(HYPERS, ent_coef=0.05, **changes)
        keys = jax.random.split(jax.random.key(0), 2)
        return compiled(constraint)(keys, hypers)

    return run


@pytest.mark.parametrize(("beta", "taken"), [(0.3, 1), (3.0, 0)])
def test_observer_term_is_descended(beta, taken, train_observed):
    """With one expert the observer is it: β decides which of the two terms wins."""
    state, _ = train_observed("multipliers", beta=beta)
    _, policies = values_and_policies(make_task(CONFIG, ACTION), state.params)
    assert np.all(np.asarray(policies)[..., taken] > 0.9)


@pytest.mark.parametrize(
    "how",
    [
        {"constraint": "gate", "beta": 3.0, "gate_width": 0.2},
        {"constraint": "multipliers", "multiplier_rate": 0.1},
    ],
    ids=["gate", "multipliers"],
)
def test_expert_is_held_at_min_return(how, train_observed):
    """The two terms pull in opposite directions; they meet at min_return.

    Multipliers swing about it. Their logarithm sums what is missing, so that the mean over many
    updates is close to min_return.
    """
    state, metrics = train_observed(min_return=0.0, **how)
    late = np.asarray(metrics.expert_returns[:, -200:, 0]).mean(axis=1)
    assert np.all((late > -0.2) & (late < 0.4))
    assert (state.multipliers is None) == (how["constraint"] == "gate")


@pytest.fixture(scope="module")
def observed():
    """A task with everything on, and a batch of it."""
    config = dataclasses.replace(
        CONFIG,
        num_experts=3,
        observer="learned",
        num_minibatches=2,
        num_epochs=2,
        num_updates=3,
        normalize_rewards=True,
    )
    return make_task(config, Probe(lambda s, a: 1.0 * (a == s), length=2))


def test_vmap_of_train_is_a_loop_of_train(observed):
    run = algorithms.make_train(observed.config, observed.world.env)
    hypers = dataclasses.replace(HYPERS, beta=1.0, ent_coef=0.01, init_temperature=0.5)
    keys = jax.random.split(jax.random.key(1), 2)
    together = jax.jit(jax.vmap(run, (0, None)))(keys, hypers)
    one = jax.jit(run)
    for index, key in enumerate(keys):
        state, metrics = one(key, hypers)
        ours = jax.tree.map(lambda x, index=index: x[index], (together[0].params, together[1]))
        chex.assert_trees_all_close(ours, (state.params, metrics), rtol=2e-4, atol=2e-5)


COLD = dataclasses.replace(HYPERS, beta=2.0, temperature=0.5)


@pytest.fixture(scope="module")
def first(observed):
    """The state before the first update of a run, and its batch."""
    log_weights = jnp.log(jnp.ones(3) / 3)

    @jax.jit
    def collected(key):
        state = algorithms.init(key, observed, COLD)
        observer = observer_policy(
            observed.networks, state.params.heads, lambda _: log_weights, 0.5
        )
        _, steps, rollout = ppo.collect(key, observed, state, observer, COLD)
        updated = ppo_state.update_statistics(observed, state, steps, rollout)
        batch = ppo.make_batch(observed, updated, steps, rollout, lambda _: log_weights, COLD)
        return state, batch

    return collected(jax.random.key(2))


@pytest.mark.parametrize("chunk", [None, 8])
@pytest.mark.parametrize("horizon", [1, 3, 100])
def test_values_of_successors_are_those_of_the_true_ones(horizon, chunk):
    """Observations count up, and the critic is asked for those that no later step has."""
    length, size = 10, 4
    time, stream = jnp.mgrid[:length, :size].astype(float)
    truncated = (time + stream) % horizon == horizon - 1
    terminated = jax.random.bernoulli(jax.random.key(0), 0.2, (length, size)) & ~truncated
    nothing = jnp.zeros((length, size))
    true = time + 1.0 + 50.0 * truncated
    steps = Transition(time, nothing, nothing, terminated, truncated, nothing, true)
    asked = []

    def value(observations):
        asked.append(observations.size)
        return 2.0 * observations

    with platform.tracing_for(platform.FORMS["cpu"]._replace(critic_chunk=chunk)):
        values, successors = ppo.rollout_values(value, steps, horizon)
    np.testing.assert_array_equal(values, 2.0 * time)
    np.testing.assert_array_equal(successors[~terminated], 2.0 * true[~terminated])
    assert chunk is not None or sum(asked) <= 2 * length * size
    assert horizon < 100 or sum(asked) < 2 * length * size


def test_before_the_first_step_every_ratio_is_one(observed, first):
    """Then the loss is minus the mean advantage, which is zero for each term."""
    state, batch = first
    weights = ppo.loss_weights(observed, state, COLD)
    _, parts = ppo_loss.minibatch_loss(
        state.params, observed.networks, batch, COLD, COLD.temperature, weights
    )
    assert float(parts.policy) == pytest.approx(0.0, abs=1e-4)
    np.testing.assert_allclose(jnp.mean(batch.experts.advantage, axis=1), 0.0, atol=1e-5)
    np.testing.assert_allclose(jnp.std(batch.experts.advantage, axis=1), 1.0, atol=1e-2)


def test_a_row_is_one_network_and_rows_give_the_arrays_back(observed, first):
    params, size = first[0].params, observed.config.num_experts
    rows = ppo_epochs.as_rows(params, size)
    jax.tree.map(np.testing.assert_array_equal, ppo_epochs.from_rows(rows, params, size), params)
    for matrix, part in zip(rows[:2], params[:2], strict=True):
        last = [np.ravel(x[-1]) for x in jax.tree.leaves(part)]
        np.testing.assert_array_equal(matrix[-1], np.concatenate(last))
    assert len(rows.observer_critic) == len(rows.classifier) == 1


def test_each_network_is_clipped_by_its_own_norm(observed, first):
    """Adam's first moment after one step is a tenth of the gradient that reached it."""
    params, size = first[0].params, observed.config.num_experts
    optimizer = ppo_epochs.optimizer(observed.config, COLD)
    rows = ppo_epochs.as_rows(params, size)
    steepness = jnp.array([0.01, 1.0, 100.0])
    grads = jax.tree.map(jnp.ones_like, rows)
    grads = grads._replace(heads=steepness[:, None] * grads.heads)
    _, state = optimizer.update(grads, optimizer.init(rows))
    moment = optax.tree.get(state.inner_states["heads"], "mu").heads
    norms = jnp.linalg.norm(grads.heads, axis=1)
    np.testing.assert_allclose(
        10.0 * jnp.linalg.norm(moment, axis=1), jnp.minimum(norms, COLD.max_grad_norm), rtol=1e-5
    )
    assert float(norms[0]) < COLD.max_grad_norm < float(norms[1])


def test_a_gate_scales_the_observers_gradient_of_its_expert_alone(observed, first):
    state, batch = first

    @jax.jit
    def head_gradient(beta, gates):
        def loss(params):
            weights = ppo.loss_weights(observed, state, COLD)
            weights = weights._replace(observer=beta, gates=gates)
            return ppo_loss.minibatch_loss(params, observed.networks, batch, COLD, 0.5, weights)[0]

        return jax.grad(loss)(state.params).heads

    own = head_gradient(0.0, jnp.ones(3))
    whole = head_gradient(2.0, jnp.ones(3))
    shares = jnp.array([0.0, 0.25, 1.0])
    gated = head_gradient(2.0, shares)
    for a, b, c in zip(*map(jax.tree.leaves, (own, whole, gated)), strict=True):
        share = shares.reshape(-1, *[1] * (a.ndim - 1))
        np.testing.assert_allclose(c, a + share * (b - a), rtol=1e-4, atol=1e-6)
        assert float(jnp.max(jnp.abs(b - a))) > 0


BAD = {
    "std='state' goes with head='gaussian'": {"std": "state"},
    "num_minibatches must divide": {"num_minibatches": 3},
}


@pytest.mark.parametrize("message", BAD)
def test_settings_that_do_not_go_together(message):
    with pytest.raises(SettingError, match=message):
        dataclasses.replace(CONFIG, **BAD[message])


MISFITS = [
    ("Breakout-MinAtar", "mlp", {}, "Use head='conv'"),
    ("CartPole-v1", "conv", {}, "Use head='mlp'"),
    ("Pendulum-v1", "mlp", {}, "Use head='gaussian'"),
    ("CartPole-v1", "gaussian", {}, "needs continuous actions"),
    ("CartPole-v1", "tabular", {}, "Use head='mlp'"),
    ("Breakout-MinAtar", "conv", {"normalize_observations": True}, "images"),
    ("FrozenLake-misc", "mlp", {"normalize_observations": True}, "states"),
    ("FrozenLake-misc", "gaussian", {}, "needs continuous actions"),
    ("CartPole-v1", "mlp", {"env_param": ("gravitas=9.8",)}, "gravity"),
    ("CartPole-v1", "mlp", {"env_param": ("max_steps_in_episode=200000",)}, "from 1 to 100000"),
    ("CartPole-v1", "mlp", {"env_param": ("gravity",)}, "="),
]


@pytest.mark.parametrize(("env", "head", "changes", "message"), MISFITS)
def test_environments_that_heads_do_not_fit(env, head, changes, message):
    with pytest.raises(SettingError, match=message):
        make_task(dataclasses.replace(CONFIG, env=env, head=head, **changes))


def test_expert_far_behind_the_best_has_collapsed():
    """But none has where the best is hardly better than chance."""
    reached = np.array([[500.0, 9.0], [500.0, 300.0], [8.0, 9.0], [28.0, 20.0]])
    collapsed = returns.collapsed_experts(reached, returns.Spread(20.0, 10.0))
    np.testing.assert_array_equal(collapsed, [[False, True], *[[False, False]] * 3])


def test_learned_weights_are_the_posterior_also_where_episodes_differ_in_length(small_grid):
    """A rollout has as many steps of each expert; an episode's draw has more of the slow one."""
    config = dataclasses.replace(CONFIG, num_experts=2, observer="learned", num_updates=300)
    hypers = dataclasses.replace(HYPERS, learning_rate=1e-9, classifier_learning_rate=0.003)
    task = make_task(config, small_grid)
    quick = 3.0 * tabular.optimal_policy(task.world.mdp)
    heads = {"params": {"table": jnp.stack([quick, 0.5 * quick[::-1]])}}
    state = algorithms.init(jax.random.key(6), task, hypers)
    state = dataclasses.replace(state, params=state.params._replace(heads=heads))
    state, metrics = jax.jit(algorithms.updates, static_argnums=(0, 3))(task, state, hypers, 300)
    mdp = task.world.mdp
    policies = jnp.exp(task.networks.tabulate_experts(heads))
    exact = jnp.exp(tabular.observer_weights(mdp, policies, "posterior"))
    occupancies = jax.vmap(tabular.state_occupancy, (None, 0))(mdp, policies)
    lengths = jnp.sum(occupancies, axis=1)
    assert float(lengths[1]) > 1.5 * float(lengths[0])
    learned = jnp.exp(
        jax.vmap(task.networks.expert_log_weights, (None, 0))(
            state.params.classifier, jnp.arange(mdp.num_states)
        )
    )
    of_steps = (occupancies / lengths[:, None]).T
    of_steps = of_steps / jnp.sum(of_steps, axis=1, keepdims=True)
    inner = ~np.asarray(mdp.terminal)
    assert np.abs(learned - exact)[inner].max() < 0.05
    assert np.abs(of_steps - exact)[inner].max() > 0.1
    assert np.asarray(metrics.calibration_error)[-20:].mean() < 0.05


def test_no_key_of_a_fresh_state_is_used_again(observed):
    """Resets come from keys that are neither the state's nor any that its updates split off it."""
    key = jax.random.key(5)
    state = algorithms.init(key, observed, COLD)
    _, start = jax.random.split(key)
    data = jax.random.key_data
    assert not np.array_equal(data(state.key), data(start))
    children = {tuple(np.asarray(data(k))) for k in jax.random.split(state.key, 3)}
    resets = jax.random.split(jax.random.split(start)[1], ppo_state.num_environments(observed))
    assert children.isdisjoint(tuple(np.asarray(data(k))) for k in resets)
    expected, _ = jax.vmap(observed.world.env.reset_env, (0, None))(resets, observed.world.params)
    np.testing.assert_array_equal(state.environments.observation, expected)


def test_returns_are_known_only_after_enough_episodes_and_new_only_once(observed):
    state = algorithms.init(jax.random.key(5), observed, COLD)
    state = dataclasses.replace(
        state,
        expert_returns=jnp.array([1.0, 2.0, 3.0]),
        num_episodes=jnp.array([CONFIG.envs_per_expert - 1, 100, 100]),
    )
    np.testing.assert_array_equal(ppo_state.known_returns(observed, state), [np.nan, 2.0, 3.0])
    new_returns = ppo_state.known_returns(observed, state, jnp.array([True, True, False]))
    np.testing.assert_array_equal(new_returns, [np.nan, 2.0, np.nan])


def test_a_second_reward_is_refused():
    with pytest.raises(SettingError, match="observer_reward must be None with algorithm=ppo"):
        make_task(CONFIG, ACTION, observer_reward=lambda step: -step.reward)


def test_gaussian_head_can_always_come_back(gaussian):
    """Its standard deviation stays within bounds, and has a gradient near both of them."""
    task = gaussian[0]
    head = jax.tree.map(lambda x: x[0], task.networks.init(jax.random.key(0)).heads)

    def log_std(raw):
        params = head | {"params": {**head["params"], "log_std": jnp.array([raw])}}
        return task.networks.distribution(params, jnp.zeros(1)).log_std[0] - jnp.log(2.0)

    assert float(log_std(0.0)) == pytest.approx(-0.5, abs=1e-6)
    assert float(jax.grad(log_std)(0.0)) == pytest.approx(1.0, abs=1e-5)
    for raw in (-8.0, 8.0):
        assert -5.0 <= float(log_std(raw)) <= 1.0
        assert float(jax.grad(log_std)(raw)) > 0
