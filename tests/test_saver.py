"""Checkpoints that are kept: the newest, and the one with the best score."""

import json

import numpy as np
import pytest
from command_line import PG, run

from ape_jax.algorithms.common import Metrics
from ape_jax.config import PGHypers, PPOConfig, PPOHypers, RunConfig
from ape_jax.runs import checkpoint, saver


def test_newest_checkpoints_and_the_best_are_kept(pg_run, tmp_path):
    assert checkpoint.saved_updates(pg_run)[-3:] == [4, 6, 8]
    out = tmp_path / "run"
    assert run("train", *PG, "--keep", "1", "--out", out) == 0
    scores = {}
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for update in (2, 4, 6, 8):
        chunk = rows[update - 2 : update]
        worst = np.mean([np.min(row["expert_returns"], axis=-1) for row in chunk])
        observer = np.mean([row["observer_return"] for row in chunk])
        scores[update] = [min(0.0, worst + 50.0), -observer]
    assert checkpoint.saved_updates(out) == sorted({8, max(scores, key=scores.get)})


def chunk_metrics(**fields):
    """Metrics of one seed and two updates, with two experts."""
    return Metrics(**{**dict.fromkeys(Metrics._fields, np.zeros((1, 2))), **fields})


def test_best_is_the_objective_where_nothing_is_to_be_kept():
    pe, observer = np.full((1, 2), 5.0), np.full((1, 2), 4.0)
    fields = {"expert_returns": np.zeros((1, 2, 2)), "pe_return": pe}
    config = RunConfig(hypers=PGHypers(beta=0.5))
    assert saver.score_of(chunk_metrics(**fields, observer_return=observer), config) == [0.0, 3.0]
    # Without an observer its return is never known, and no part of the objective.
    alone = RunConfig(PPOConfig(head="mlp", observer="none"), PPOHypers(beta=0.5))
    unknown = chunk_metrics(**fields, observer_return=np.full((1, 2), np.nan))
    assert saver.score_of(unknown, alone) == [0.0, 5.0]
    assert saver.score_of(unknown, config) == []


@pytest.mark.parametrize("min_return", [None, -100.0])
def test_what_is_not_known_yet_is_never_the_best(min_return):
    """A chunk without an ended episode has the lowest score, also where returns are negative."""
    config = RunConfig(hypers=PGHypers(beta=0.5, min_return=min_return))

    def score(first, second):
        returns = np.array([[first, second]])
        found = chunk_metrics(
            pe_return=returns,
            observer_return=returns,
            expert_returns=np.stack([returns, returns], axis=-1),
        )
        return saver.score_of(found, config)

    assert score(np.nan, np.nan) < score(-300.0, -300.0)
    assert score(np.nan, -200.0) == score(-200.0, -200.0)
