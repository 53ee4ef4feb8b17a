"""One update on samples, with the interface and the shapes of the original PyTorch listing.

A batch has 32 observations of ten numbers. There are five actions, and three experts with 64 hidden
units. The listing draws the expert of each sample and loops over the experts in Python;
``ape_jax.update_from_samples`` takes the expert of each sample as an argument. Batches are made
before, and only the update is timed. Without PyTorch the columns of the listing are null.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from ape_jax import PGConfig, PGHypers, Samples, create_state, make_networks, update_from_samples
from benchmarks import common

STATE_DIM, ACTION_DIM, NUM_EXPERTS, BATCH = 10, 5, 3, 32
BETA, RATE = 0.5, 1e-3
SCANNED = 100
"""Updates in one program, which scans over stacked batches."""
WAYS = {
    "loss_read": "update_from_samples, its loss read after each",
    "dispatched": "update_from_samples, dispatched ahead",
    "raw": "jitted update_from_samples, dispatched ahead",
    "scanned": "update_from_samples in one jitted scan",
}


def batches() -> tuple[Samples, Samples]:
    """Samples of the experts and of the observer."""
    random = np.random.default_rng(0)

    def one(with_expert: bool) -> Samples:
        return Samples(
            observation=jnp.asarray(random.normal(size=(BATCH, STATE_DIM)), jnp.float32),
            action=jnp.asarray(random.integers(0, ACTION_DIM, BATCH)),
            returns=jnp.asarray(random.normal(size=BATCH), jnp.float32),
            expert=jnp.asarray(random.integers(0, NUM_EXPERTS, BATCH)) if with_expert else None,
        )

    return one(True), one(False)


def ours() -> dict[str, common.Contestant]:
    """The four ways to call our update."""
    config = PGConfig(num_experts=NUM_EXPERTS, head="mlp", activation="relu")
    networks = make_networks(
        config, spaces.Box(-jnp.inf, jnp.inf, (STATE_DIM,)), spaces.Discrete(ACTION_DIM)
    )
    hypers = PGHypers(beta=BETA, learning_rate=RATE, critic_learning_rate=RATE)
    start = create_state(jax.random.key(0), networks, hypers)
    experts, observer = batches()

    @jax.jit
    def scan(state, experts, observer):
        return jax.lax.scan(
            lambda s, pair: update_from_samples(s, *pair, hypers), state, (experts, observer)
        )

    def loss_read(count: int) -> None:
        state = start
        for _ in range(count):
            state, losses = update_from_samples(state, experts, observer, hypers)
            float(losses.expert_policy)

    def dispatched(update, count: int) -> None:
        state = start
        for _ in range(count):
            state, losses = update(state, experts, observer, hypers)
        jax.block_until_ready((state, losses))

    stacked = jax.tree.map(lambda x: jnp.stack([x] * SCANNED), (experts, observer))
    return {
        "loss_read": loss_read,
        "dispatched": functools.partial(dispatched, update_from_samples),
        "raw": functools.partial(dispatched, jax.jit(update_from_samples)),
        "scanned": common.repeated(scan, start, *stacked),
    }


def listing(threads: int) -> common.Contestant:
    """The corrected listing, in PyTorch."""
    import torch

    from benchmarks.torch_ape import listing

    ensemble = listing.PolicyEnsemble(STATE_DIM, ACTION_DIM, NUM_EXPERTS)
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=RATE)
    tensors = [torch.tensor(np.asarray(x)) for samples in batches() for x in samples[:3]]

    def work(count: int) -> None:
        torch.set_num_threads(threads)
        for _ in range(count):
            listing.update_from_samples(ensemble, optimizer, *tensors, BETA)

    return work


def measure(effort: common.Effort) -> dict:
    """Updates a second of all ways, by turns; PyTorch has one thread, with which it is fastest."""
    contestants = ours()
    if common.has_torch():
        contestants["listing"] = listing(threads=1)
    found = common.rates(contestants, effort)
    theirs = found.get("listing")
    rows = []
    for way, meaning in WAYS.items():
        work = SCANNED if way == "scanned" else 1
        rate = found[way].median * work
        rows.append(
            {
                "way": way,
                "meaning": meaning,
                "ours_updates_per_second": rate,
                "listing_updates_per_second": theirs and theirs.median,
                "ratio": theirs and rate / theirs.median,
                "spread": [x * work for x in found[way].as_json()],
                "listing_spread": theirs and theirs.as_json(),
            }
        )
    checks = 1 / found["dispatched"].median - 1 / found["raw"].median
    return {"device": common.device(), "checks_microseconds": 1e6 * checks, "rows": rows}


def draw(rows: list[dict]):
    """Updates a second of the listing and of the ways to call ours."""
    figure, (axes,) = common.axes_of(height=2.6)
    theirs = rows[0]["listing_updates_per_second"]
    if theirs is not None:
        axes.barh("listing in PyTorch", theirs, color=common.EAGER)
    for row in rows:
        label = f"ours, {row['way'].replace('_', ' ')}"
        axes.barh(label, row["ours_updates_per_second"], color=common.OURS)
    axes.set_xscale("log")
    axes.set_xlim(left=10)
    axes.invert_yaxis()
    axes.set_xlabel("updates a second")
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, print."""
    out, effort, console = common.options(__doc__, arguments)
    if not common.has_torch():
        console.print('PyTorch is not installed: its columns stay empty. pip install ".[bench]"')
    with console.status("updates on samples"):
        result = measure(effort)
    columns = {
        "ours": "meaning",
        "updates / s": "ours_updates_per_second",
        "listing": "listing_updates_per_second",
        "ratio": "ratio",
    }
    table = common.table_of(result["rows"], columns, "One update on samples")
    common.publish(result, draw(result["rows"]), table, out, console)


if __name__ == "__main__":
    main()
