"""Shortest paths against Dijkstra's algorithm of SciPy, on random deterministic graphs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import show, steps
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from ape_jax.evaluation.returns import policy_table
from ape_jax.observers import OfflineQ, ShortestPath
from ape_jax.observers.empirical import action_values, empirical_model

STATES, ACTIONS, HORIZON = 12, 3, 20
END = STATES


def graph(seed, share):
    """Successors [S, A], of which the last means an end, and the edges that are shown [M, 2]."""
    generator = np.random.default_rng(seed)
    successors = generator.integers(0, STATES, (STATES, ACTIONS))
    ends = generator.choice(STATES * ACTIONS, 2, replace=False)
    successors.flat[ends] = END
    pairs = np.argwhere(generator.random((STATES, ACTIONS)) < share)
    rows = np.arange(STATES * ACTIONS) % len(pairs)  # As many for every graph: one program.
    return successors, pairs[rows]


def show_edges(successors, edges):
    """An episode for each edge: it ends there, or goes on to a step whose outcome is unknown."""
    observation, action, ends = [], [], []
    for number, (state, chosen) in enumerate(edges):
        following = successors[state, chosen]
        if following == END:  # An episode more, so that there are as many steps.
            ends.append(len(observation))
            observation += [[state], [0]]
            action += [[chosen], [0]]
        else:
            observation.append([state, following])
            action.append([chosen, number % ACTIONS])
    lengths = [len(episode) for episode in observation]
    return steps(np.concatenate(observation), np.concatenate(action), lengths, ends=ends)


def distances(successors, edges):
    """Steps from each state to an end along these edges; ∞ where there is no way."""
    state, action = edges.T
    backward = csr_matrix(
        (np.ones(len(edges)), (successors[state, action], state)), shape=(STATES + 1, STATES + 1)
    )
    return dijkstra(backward, unweighted=True, indices=END)


@jax.jit
def solve(shown):
    model = empirical_model(shown, STATES, ACTIONS)
    values = action_values(model, -jnp.ones((STATES, ACTIONS)), HORIZON)
    fitted = ShortestPath(STATES, ACTIONS, HORIZON).fit(jax.random.key(0), shown)
    return jnp.max(values, axis=-1), policy_table(fitted, STATES)


@pytest.mark.parametrize("share", [2.0, 0.6, 0.3], ids=["all edges", "most", "few"])
@pytest.mark.parametrize("seed", range(6))
def test_values_are_distances_and_the_policy_takes_a_nearest_successor(seed, share):
    successors, edges = graph(seed, share)
    values, policy = map(np.asarray, solve(show_edges(successors, edges)))
    expected = distances(successors, edges)
    seen = np.zeros((STATES, ACTIONS), bool)
    seen[tuple(edges.T)] = True
    known, arrives = seen.any(axis=1), np.isfinite(expected[:STATES])

    np.testing.assert_allclose(values[arrives], -expected[:STATES][arrives])
    np.testing.assert_allclose(values[known & ~arrives], -HORIZON)
    for state in np.flatnonzero(known):
        steps_after = np.where(seen[state], expected[successors[state]], np.inf)
        best = seen[state] & (steps_after == steps_after[seen[state]].min())
        np.testing.assert_allclose(policy[state], best / best.sum(), atol=1e-6)
    np.testing.assert_allclose(policy[~known], 1 / ACTIONS, rtol=1e-6)


def test_the_graphs_hold_every_case():
    """With few edges some states have no way to an end, and some no edge at all."""
    for share, some in ((2.0, False), (0.3, True)):
        found = [graph(seed, share) for seed in range(6)]
        lost = [np.isinf(distances(*one)[:STATES]).any() for one in found]
        empty = [len(np.unique(edges[:, 0])) < STATES for _, edges in found]
        assert (any(lost) and any(empty)) if some else not any(empty)


def test_it_is_offline_q_where_each_step_costs_one(small_task):
    shown = show(small_task.world, np.full((9, 5), 0.2), 4_000)
    ours, other = (
        kind(9, 5, small_task.world.horizon).fit(jax.random.key(0), shown)
        for kind in (ShortestPath, OfflineQ)
    )
    np.testing.assert_array_equal(ours.table.log_probs, other.table.log_probs)


def test_rewards_are_not_looked_at(small_task):
    shown = show(small_task.world, np.full((9, 5), 0.2), 4_000)
    observer = ShortestPath(9, 5, small_task.world.horizon)
    ours, other = (
        observer.fit(jax.random.key(0), shown._replace(reward=reward))
        for reward in (shown.reward, jnp.arange(4_000.0))
    )
    np.testing.assert_array_equal(ours.table.log_probs, other.table.log_probs)
