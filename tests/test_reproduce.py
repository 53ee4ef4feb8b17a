"""The reproduction in small, end to end: claims over seeds, the schema, and the files."""

import dataclasses

import matplotlib.image
import numpy as np
import pytest
from command_line import run

from ape_jax.cli.output import INTERRUPTED
from ape_jax.evaluation import records, reproduce
from ape_jax.evaluation.intervals import MeanStd
from ape_jax.evaluation.reproduce import LABELS, Table1
from ape_jax.reporting import reproduction, tables

SCALE = reproduce.Scale(seeds=4, first_seed=50, max_updates=1200, num_demonstrations=200_000)


@pytest.fixture(scope="module")
def trained():
    return list(reproduce.train_rows(SCALE))


@pytest.fixture(scope="module")
def rows(trained):
    return {one.row.name: one.row for one in trained}


def values(row, column):
    if column == "experts":
        return np.asarray(row.expert_returns)
    return getattr(row, "pe_return" if column == "pe" else column).array


@pytest.mark.slow
def test_pg_ape_experts_do_well_and_their_mixture_badly(rows):
    row = rows["pg_ape"]
    assert np.all(values(row, "experts") >= -18)
    assert np.all(values(row, "mixture") <= -75)


@pytest.mark.slow
def test_greedy_ape_traps_the_greedy_clone_of_one_expert_and_of_two(rows):
    for name in ("greedy_ape", "greedy_ape_single"):
        assert np.mean(values(rows[name], "pe")) >= -14
        assert np.mean(values(rows[name], "bc_greedy")) <= -85


@pytest.mark.slow
def test_without_observer_experts_and_clones_are_near_optimal(rows):
    for column in ("pe", "mixture", "bc_sampled", "bc_greedy"):
        assert np.all(values(rows["optimal"], column) >= -11)


@pytest.mark.slow
def test_halted_rows_stop_near_their_targets(rows):
    gap = values(rows["near_optimal"], "pe") - values(rows["pg_ape"], "pe")
    assert np.all((gap >= 0) & (gap < 1.5))
    # Halted at the first update that reaches the target, or before the first if that is enough.
    assert np.all(values(rows["random"], "pe") >= values(rows["pg_ape"], "mixture"))
    assert np.all(values(rows["random"], "pe") < -60)


@pytest.mark.slow
def test_sampled_clones_are_never_below_the_floor(rows):
    """By more than the standard error of their mean return over seeds, in any row."""
    for name, row in rows.items():
        sampled, floor = values(row, "bc_sampled"), values(row, "floor")
        error = np.std(sampled, ddof=1) / np.sqrt(len(sampled))
        assert np.mean(sampled - floor) >= -error, name
        assert np.mean(sampled - floor) >= -0.15, name


@pytest.mark.slow
def test_sampled_clones_recover_the_ensemble_where_no_episode_is_truncated(rows):
    for name in ("optimal", "near_optimal", "pg_ape", "greedy_ape", "greedy_ape_single"):
        gap = values(rows[name], "bc_sampled") - values(rows[name], "pe")
        assert np.all(np.abs(gap) < 1.0), name


@pytest.mark.slow
def test_table_and_figures_are_sound(trained, tmp_path):
    table = reproduce.table1(trained, SCALE, 1.0)
    assert [row.name for row in table.rows] == list(LABELS)
    for row in table.rows:
        experts = 1 if row.name == "greedy_ape_single" else 2
        assert np.shape(row.expert_returns) == (4, experts)
        for column in tables.COLUMNS:
            summary = getattr(row, column)
            assert summary == MeanStd.over_seeds(summary.values)
    few = dataclasses.replace(SCALE, num_demonstrations=20_000)
    reproduction.draw(trained, few, tmp_path)
    for name in reproduction.FIGURES:
        image = matplotlib.image.imread(tmp_path / name)
        assert min(image.shape[:2]) > 400
        assert np.std(image[..., :3]) > 0.1  # Something is drawn.


@pytest.mark.slow
def test_command_keeps_finished_rows_when_it_is_interrupted(tmp_path, monkeypatch):
    rows = reproduce.train_rows

    def interrupted(scale, progress):
        finished = rows(reproduce.Scale(seeds=1, max_updates=2, num_demonstrations=1_000))
        yield next(finished)
        yield next(finished)
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "train_rows", interrupted)
    assert run("reproduce", "--seeds", "2", "--out", tmp_path) == INTERRUPTED
    table = records.read(Table1, tmp_path / "table1.json")
    assert [row.name for row in table.rows] == ["optimal", "pg_ape"]
    assert tables.EXPLANATION in (tmp_path / "table1.md").read_text()
    assert (tmp_path / "config.yaml").exists()
