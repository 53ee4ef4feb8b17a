"""DAgger: cloning with an expert at hand, who says what it would do wherever the clone goes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ape_jax.algorithms.task import Task
from ape_jax.core import categorical
from ape_jax.demonstrations import collect
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.observers.behaviour_cloning import BehaviourCloning, TabularCloning
from ape_jax.types import Params, PRNGKey


@dataclasses.dataclass(frozen=True)
class Dagger:
    """Dataset aggregation (Ross et al., arXiv 1011.0686), with as many labels as demonstrations.

    The first part of the demonstrations is kept. In each round the clone acts for as many steps as
    another part holds, and the steps that it visits, labelled by experts, take that part's place.
    Who answers is drawn uniformly for each episode, as the demonstrator is, and stays hidden.

    That draw does not depend on where the clone goes, so against an ensemble the answers weigh the
    experts evenly: DAgger leads to the paper's uniform mixture, not to the posterior.
    """

    task: Task
    """Environment, horizon and networks of the ensemble."""
    heads: Params
    """Parameters of the experts, stacked."""
    cloning: TabularCloning | BehaviourCloning
    """How it fits what it has gathered."""
    num_rounds: int = 9
    """Rounds of acting and asking."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> Any:
        """Clone, act, ask, and clone again."""
        size = max(len(demonstrations.action) // (self.num_rounds + 1), 1)

        def ask(data, this):
            index, key = this
            key_fit, key_act = jax.random.split(key)
            answered = self.query(key_act, self.cloning.fit(key_fit, data), size)
            answered = answered._replace(episode=answered.episode + index * len(data.action))

            def replace(all_steps, part):
                return jax.lax.dynamic_update_slice_in_dim(all_steps, part, index * size, axis=0)

            return jax.tree.map(replace, data, answered), None

        key_rounds, key_last = jax.random.split(key)
        rounds = (
            jnp.arange(1, self.num_rounds + 1),
            jax.random.split(key_rounds, self.num_rounds),
        )
        data, _ = jax.lax.scan(ask, demonstrations, rounds)
        return self.cloning.fit(key_last, data)

    def query(self, key: PRNGKey, clone, num_steps: int) -> Demonstrations:
        """Steps [N] that the clone visits, with the action of the expert who is asked."""
        key_visit, key_answer = jax.random.split(key)
        networks = self.task.networks
        acting = networks.tabulate(
            lambda observation: categorical.cumulative_probs(clone(observation))
        )

        def act(observation, _, uniforms):
            return categorical.sample(acting(observation), uniforms[0])

        visited, expert = collect.pool(key_visit, self.task, act, num_steps)
        uniforms = jax.random.uniform(key_answer, (num_steps, 1))
        answer = collect.sampler(self.task, self.heads)
        return visited._replace(action=jax.vmap(answer)(visited.observation, expert, uniforms))
