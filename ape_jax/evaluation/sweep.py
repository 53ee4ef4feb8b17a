"""The frontier: what the experts still return, against what is left to the clone, over β."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ape_jax.algorithms import exact
from ape_jax.algorithms.task import Task, make_task
from ape_jax.config import Hypers, TrainConfig
from ape_jax.evaluation import returns as evaluation
from ape_jax.evaluation.defences import GREEDY_TEMPERATURE, as_tables, greedy_weights
from ape_jax.evaluation.intervals import interval
from ape_jax.observers import Mixture, Posterior
from ape_jax.training import guards
from ape_jax.training.trainer import EVALUATE, Chunk, Trainer, seed_keys
from ape_jax.types import Params, Policy, PRNGKey

OBSERVERS = ("uniform", "greedy")
"""Trained against and then measured: the uniform mixture, sampling; and the posterior mixture,
trained against at a low temperature and measured greedily."""


class Returns(NamedTuple):
    """Of ensembles [...]."""

    pe: Float[Array, "..."]
    """Of the ensemble, exact or sampled."""
    worst_expert: Float[Array, "..."]
    """The lowest expert's."""
    clone: Float[Array, "..."]
    """Of the observer that was trained against."""


class Point(NamedTuple):
    """All seeds of one β."""

    observer: str
    """Trained against: ``uniform`` or ``greedy``."""
    training: str
    """``sampled``, or ``exact`` by gradients of exact returns."""
    beta: float
    """Weight of the observer's return."""
    returns: Returns
    """[K]."""

    def to_json(self) -> dict:
        """As ``sweep.json`` holds it."""
        return {
            "observer": self.observer,
            "training": self.training,
            "beta": self.beta,
            "pe_return": interval(self.returns.pe),
            "worst_expert": interval(self.returns.worst_expert),
            "clone_return": interval(self.returns.clone),
        }


class Sweep:
    """Trains over β × seeds: one compiled program for each observer."""

    def __init__(
        self, config: TrainConfig, hypers: Hypers, betas: tuple[float, ...], seeds: int, first: int
    ):
        """Prepare.

        Args:
          config: static settings; its observer is replaced.
          hypers: the rest; β and temperature are replaced.
          betas: β of every point.
          seeds: runs for each β.
          first: number of the first seed.
        """
        self.betas = betas
        self.seeds = seeds
        self._hypers = hypers
        self._train_keys = seed_keys(first, seeds)
        self._keys = seed_keys(first, seeds, EVALUATE)
        mdp = make_task(dataclasses.replace(config, observer="uniform")).world.mdp
        weights = {"uniform": "uniform", "greedy": greedy_weights(mdp)}
        self.tasks: dict[str, Task] = {
            name: make_task(dataclasses.replace(config, observer=weights[name]))
            for name in OBSERVERS
        }
        self._measure = jax.jit(self._measure_seeds, static_argnums=(0, 1))
        self._ascend = jax.jit(self._ascend_seeds, static_argnums=0)

    def sampled(self, observer: str, report: Callable[[Chunk], None]) -> Iterator[Point]:
        """Train from samples, all β × seeds side by side.

        Raises:
          NonFiniteError: losses or parameters are not finite any more.
        """
        count = len(self.betas) * self.seeds
        hypers = dataclasses.replace(self._hypers, temperature=_temperature(observer))
        hypers = jax.tree.map(lambda x: jnp.full(count, x), hypers)
        hypers = dataclasses.replace(hypers, beta=jnp.repeat(jnp.asarray(self.betas), self.seeds))
        keys = jnp.tile(self._train_keys, len(self.betas))
        task = self.tasks[observer]
        num_done = 0
        for chunk in Trainer(task, sweep=True).chunks(keys, hypers):
            guards.check(chunk.metrics, chunk.state, num_done)
            num_done = chunk.num_done
            report(chunk)
        heads = chunk.state.params.heads
        shape = (len(self.betas), self.seeds)
        heads = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), heads)
        for index, beta in enumerate(self.betas):
            of_beta = jax.tree.map(lambda x, index=index: x[index], heads)
            returns = self._measure(task, observer, of_beta, self._keys)
            yield Point(observer, "sampled", beta, jax.tree.map(np.asarray, returns))

    def exact(self, observer: str) -> Iterator[Point]:
        """Ascend exact gradients, the seeds of one β side by side; nothing without a finite MDP."""
        task = self.tasks[observer]
        if task.world.mdp is None:
            return
        config = dataclasses.replace(task.config, head="tabular")
        tabular_task = self.tasks.setdefault(f"exact {observer}", make_task(config))
        for beta in self.betas:
            logits = self._ascend(observer, self._train_keys, jnp.float32(beta))
            heads = as_tables(jax.nn.log_softmax(logits))
            returns = self._measure(tabular_task, observer, heads, self._keys)
            yield Point(observer, "exact", beta, jax.tree.map(np.asarray, returns))

    def _ascend_seeds(self, observer, keys: Key[Array, " K"], beta) -> Float[Array, "K E S A"]:
        task = self.tasks[observer]
        mdp = task.world.mdp
        assert mdp is not None

        def one(key):
            return exact.train(
                key,
                mdp,
                beta,
                num_experts=task.config.num_experts,
                weights="uniform" if observer == "uniform" else "posterior",
                temperature=_temperature(observer),
            )

        return jax.vmap(one)(keys)

    def _measure_seeds(self, task: Task, observer: str, heads: Params, keys: PRNGKey) -> Returns:
        def one(heads, key):
            key_experts, key_fit, key_clone = jax.random.split(key, 3)
            experts = evaluation.ensemble_returns(task, heads, key_experts).experts
            clone: Policy
            if observer == "uniform":
                clone = Mixture(task.networks, heads).fit(key_fit, None)
            else:
                clone = evaluation.greedy(Posterior(task, heads).fit(key_fit, None))
            clone_return = evaluation.expected_return(task.world, clone, key_clone)
            return Returns(jnp.mean(experts), jnp.min(experts), clone_return)

        return jax.lax.map(lambda both: one(*both), (heads, keys), batch_size=10)


def _temperature(observer: str) -> float:
    return GREEDY_TEMPERATURE if observer == "greedy" else 1.0


def compare(points: list[dict]) -> list[dict]:
    """Gap of sampled training against the exact one's at the same PE return.

    The exact frontier is the line through the means of exact training over β.
    Points of sampled training that return more or less than all of it are left out.

    Args:
      points: of ``sweep.json``.

    Returns:
      For each observer and each β of sampled training: the PE return, both gaps (PE − clone), and
      their ratio.
    """
    compared = []
    for observer in OBSERVERS:
        mine = [point for point in points if point["observer"] == observer]
        frontier = sorted(
            (point["pe_return"]["mean"], point["clone_return"]["mean"])
            for point in mine
            if point["training"] == "exact"
        )
        if len(frontier) < 2:
            continue
        pe_returns, clone_returns = zip(*frontier, strict=True)
        for point in mine:
            pe_return = point["pe_return"]["mean"]
            within = pe_returns[0] <= pe_return <= pe_returns[-1]
            if point["training"] != "sampled" or not within:
                continue
            gap = pe_return - point["clone_return"]["mean"]
            exact_gap = pe_return - float(np.interp(pe_return, pe_returns, clone_returns))
            compared.append(
                {
                    "observer": observer,
                    "beta": point["beta"],
                    "pe_return": pe_return,
                    "sampled_gap": gap,
                    "exact_gap": exact_gap,
                    "ratio": gap / exact_gap if exact_gap > 0 else None,
                }
            )
    return compared
