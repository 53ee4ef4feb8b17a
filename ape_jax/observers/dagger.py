"""DAgger: cloning with experts who say what they would do wherever the clone goes."""

import dataclasses

import jax
import jax.numpy as jnp

from ape_jax.algorithms.task import Task
from ape_jax.core.policies import TablePolicy
from ape_jax.demonstrations import collect
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import HeadPolicy
from ape_jax.observers.behaviour_cloning import BehaviourCloning, TabularCloning
from ape_jax.types import Params, PRNGKey


@dataclasses.dataclass(frozen=True)
class Dagger:
    """Dataset aggregation (Ross et al., arXiv 1011.0686), with as many labels as demonstrations.

    The first part of the demonstrations is kept. In each round the clone acts for as many steps as
    another part holds. The steps that it visits, labelled by experts, replace that part. The expert
    who answers is drawn uniformly for each episode, as the demonstrator is, and stays hidden.

    That draw does not depend on where the clone goes. Against an ensemble the answers therefore
    weigh the experts evenly: DAgger leads to the paper's uniform mixture, not to the posterior.
    """

    task: Task
    heads: Params
    """Parameters of the experts, stacked [E, …]."""
    cloning: TabularCloning | BehaviourCloning
    """The observer that fits the data of each round."""
    num_rounds: int = 9

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> TablePolicy | HeadPolicy:
        """Clone, act, ask, and clone again."""
        size = max(len(demonstrations.action) // (self.num_rounds + 1), 1)

        def ask(data, this):
            index, key = this
            key_fit, key_act = jax.random.split(key)
            answered = self.query(key_act, self.cloning.fit(key_fit, data), size)
            answered = answered._replace(episode=answered.episode + index * len(data.action))
            replace = jax.lax.dynamic_update_slice_in_dim
            return jax.tree.map(lambda x, y: replace(x, y, index * size, 0), data, answered), None

        key_rounds, key_last = jax.random.split(key)
        keys = jax.random.split(key_rounds, self.num_rounds)
        rounds = (jnp.arange(1, self.num_rounds + 1), keys)
        data, _ = jax.lax.scan(ask, demonstrations, rounds)
        return self.cloning.fit(key_last, data)

    def query(
        self, key: PRNGKey, clone: TablePolicy | HeadPolicy, num_steps: int
    ) -> Demonstrations:
        """Steps [N] that the clone visits, with the action of the expert who is asked."""
        key_visit, key_answer = jax.random.split(key)
        world, num_experts = self.task.world, self.task.networks.num_experts
        policy = world.for_sampling(clone)

        def act(observation, expert):
            return policy((), observation, world.no_action)[1]

        visited, expert = collect.pool(key_visit, world, act, num_experts, num_steps)
        answer = collect.expert_policies(self.task, self.heads)
        uniforms = jax.random.uniform(key_answer, (num_steps, world.num_uniforms))
        actions = jax.vmap(lambda *x: answer(*x[:2]).sample(x[2]))(
            visited.observation, expert, uniforms
        )
        return visited._replace(action=world.clip_action(actions))
