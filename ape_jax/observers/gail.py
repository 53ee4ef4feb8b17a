"""Generative adversarial imitation: acting in the environment until it looks like the experts."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Shaped

from ape_jax.algorithms import common, ppo
from ape_jax.algorithms.task import Task
from ape_jax.config import PPOConfig, PPOHypers, recipe
from ape_jax.core.returns import discounted_returns
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import HeadPolicy, make_networks
from ape_jax.observers.values import ActionValues, in_standard_units
from ape_jax.types import PRNGKey, Transition

NUM_ENVS = 16
ROLLOUT_LENGTH = 64
"""Steps of each of the environments in an update."""

MAX_LOGIT = 5.0
"""Largest output of the discriminator that counts, and minus the smallest."""

LEAST_SHARE = 0.01
"""Least share of the time limit that each side spends before the end, and that it spends after."""


@dataclasses.dataclass(frozen=True)
class Gail:
    """GAIL (Ho and Ermon, arXiv 1606.03476): it acts in the environment, but sees no rewards there.

    A discriminator learns to tell steps of the learner from demonstrated ones. Its logit is the
    reward from which PPO learns. Where that succeeds, the learner visits all observations and
    actions as often as the experts do on average, and so returns what they return on average.

    As in arXiv 1809.02925, a task that has ended goes on in an absorbing state up to the time
    limit. The time that each side spends there says what an end is worth. Without it, a learner
    would end its episodes early because its rewards are negative, or late because they are not.
    """

    task: Task
    """The environment, and the kind of heads. Its rewards are not used."""
    _: dataclasses.KW_ONLY
    num_updates: int = 250
    """Updates of PPO, of 1,024 environment steps each."""
    num_steps: int = 16
    """Steps of the discriminator's optimiser in an update."""
    batch_size: int = 256
    """Steps of each side that the discriminator sees in one step of its optimiser."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> HeadPolicy:
        """Learn the policy and the discriminator in turns."""
        task, hypers = self.learner()
        discriminator = ActionValues(in_standard_units(task.networks))
        optimizer = optax.adam(hypers.learning_rate)
        shown = (demonstrations.observation, demonstrations.action)
        num_ends = jnp.sum(demonstrations.terminated | demonstrations.truncated)
        expert_share = share_before_end(num_ends / len(shown[1]), task.world.horizon)

        def tell_apart(params, key, acted) -> Float[Array, ""]:
            key_shown, key_acted = jax.random.split(key)

            def loss(key, pairs, sign):
                rows = jax.random.randint(key, (self.batch_size,), 0, len(pairs[1]))
                return jnp.mean(jax.nn.softplus(-sign * discriminator(params, *_take(pairs, rows))))

            return loss(key_shown, shown, 1.0) + loss(key_acted, acted, -1.0)

        def update(carry, key):
            state, params, opt_state = carry
            log_weights = common.expert_log_weights(task, state.params)
            state, steps, rollout = ppo.act(task, state, log_weights, hypers)
            acted = (_flat(steps.observation), task.world.clip_action(_flat(steps.action)))

            def improve(carry, key):
                params, opt_state = carry
                grads = jax.grad(tell_apart)(params, key, acted)
                changes, opt_state = optimizer.update(grads, opt_state)
                return (optax.apply_updates(params, changes), opt_state), None

            keys = jax.random.split(key, self.num_steps)
            (params, opt_state), _ = jax.lax.scan(improve, (params, opt_state), keys)
            logits = discriminator(params, *acted).reshape(steps.reward.shape)
            own_share = share_before_end(state.ends_per_step[0], task.world.horizon)
            rewards = step_rewards(
                logits, steps, expert_share, own_share, hypers.gamma, task.world.horizon
            )
            discounts = jnp.where(steps.terminated | steps.truncated, 0.0, hypers.gamma)
            sums = discounted_returns(rewards, discounts)
            steps, rollout = (
                steps._replace(reward=rewards),
                rollout._replace(discounted_return=sums),
            )
            state, _ = ppo.learn(task, state, steps, rollout, log_weights, hypers)
            return (state, params, opt_state), None

        key_learner, key_discriminator, key_updates = jax.random.split(key, 3)
        params = discriminator.init(key_discriminator, demonstrations)
        start = (ppo.init(key_learner, task, hypers), params, optimizer.init(params))
        keys = jax.random.split(key_updates, self.num_updates)
        (state, _, _), _ = jax.lax.scan(update, start, keys)
        return HeadPolicy(jax.tree.map(lambda x: x[0], state.params.heads), task.networks)

    def learner(self) -> tuple[Task[PPOConfig], PPOHypers]:
        """The task and the numbers of one expert that learns alone by PPO."""
        world, head = self.task.world, self.task.config.head
        config, hypers = recipe(head, algorithm="ppo")
        assert isinstance(config, PPOConfig)
        assert isinstance(hypers, PPOHypers)
        config = dataclasses.replace(
            config,
            env=self.task.config.env,
            env_param=self.task.config.env_param,
            observer="none",
            num_experts=1,
            num_updates=self.num_updates,
            envs_per_expert=NUM_ENVS,
            rollout_length=ROLLOUT_LENGTH,
            normalize_observations=head != "conv" and world.num_states is None,
            normalize_rewards=True,
        )
        networks = make_networks(config, world.observation_space, world.action_space)
        return Task(config, world, networks), hypers


def share_before_end(ends_per_step: Float[Array, ""], horizon: int) -> Float[Array, ""]:
    """Mean length of an episode, as a share of the time limit."""
    length = 1.0 / jnp.maximum(ends_per_step, 1.0 / horizon)
    return jnp.clip(length / horizon, LEAST_SHARE, 1.0 - LEAST_SHARE)


def step_rewards(
    logits: Float[Array, "T B"],
    steps: Transition,
    expert_share: Float[Array, ""],
    own_share: Float[Array, ""],
    gamma: Float[Array, ""] | float,
    horizon: int,
) -> Float[Array, "T B"]:
    """Log ratio of the experts' occupancy to the learner's, for steps of a rollout.

    The discriminator compares one step of each side, and so shares of all steps. A share times the
    time before the end is the occupancy. A step that ends the task is paid for the absorbing state
    too, for a whole time limit, discounted.
    """
    ratio = jnp.log(expert_share) - jnp.log(own_share)
    after = jnp.log1p(-expert_share) - jnp.log1p(-own_share)
    rewards = jnp.clip(logits, -MAX_LOGIT, MAX_LOGIT) + ratio
    discounts = jnp.sum(gamma ** jnp.arange(1, horizon + 1))
    return rewards + jnp.where(steps.terminated, discounts * after, 0.0)


def _flat(x: Shaped[Array, "T B ..."]) -> Shaped[Array, "N ..."]:
    return x.reshape(-1, *x.shape[2:])


def _take(pairs, rows):
    return tuple(x[rows] for x in pairs)
