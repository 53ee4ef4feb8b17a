"""The reproduction in small, end to end: claims over seeds, the schema, and the files."""

import json
import time

import matplotlib.image
import numpy as np
import pytest

from ape_jax import cli
from ape_jax.evaluation import reproduce
from ape_jax.evaluation.intervals import over_seeds
from ape_jax.reporting import tables

SCALE = reproduce.Scale(seeds=4, first_seed=50, max_updates=1200, num_demonstrations=200_000)


@pytest.fixture(scope="module")
def reproduction():
    return reproduce.Reproduction(SCALE)


@pytest.fixture(scope="module")
def rows(reproduction):
    return {row.name: row for row in reproduction.rows(lambda name, chunk: None)}


def values(row, column):
    return np.asarray(getattr(row.returns, column), np.float64)


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
def test_table_and_figures_are_written(reproduction, rows, tmp_path):
    content = reproduce.table_json(list(rows.values()), SCALE, 100, time.monotonic())
    reproduce.write_table(tmp_path, content)
    reproduce.write_settings(tmp_path, list(rows.values()))
    reproduction.draw(list(rows.values()), tmp_path)
    loaded = json.loads((tmp_path / "table1.json").read_text())
    assert list(loaded) == ["seeds", "horizon", "wall_seconds", "rows", "paper"]
    assert [row["name"] for row in loaded["rows"]] == list(reproduce.LABELS)
    for row in loaded["rows"]:
        experts = 1 if row["name"] == "greedy_ape_single" else 2
        assert np.shape(row["expert_returns"]) == (4, experts)
        for column in (
            "pe_return",
            "greedy_experts",
            "mixture",
            "bc_sampled",
            "bc_greedy",
            "floor",
        ):
            assert row[column] == over_seeds(row[column]["values"])
    text = (tmp_path / "table1.md").read_text()
    assert text.count("\n| ") == len(reproduce.LABELS) + 1
    assert tables.EXPLANATION in text
    for name in ("figure3.png", "figure4.png", "learning_curves.png"):
        image = matplotlib.image.imread(tmp_path / name)
        assert min(image.shape[:2]) > 400
        assert np.std(image[..., :3]) > 0.1  # Something is drawn.


@pytest.mark.slow
def test_quick_command_writes_everything_and_keeps_finished_rows(tmp_path, monkeypatch, capfd):
    """Ctrl-C in the second row leaves the table of the first."""
    monkeypatch.setattr(reproduce.Reproduction, "_halted", _interrupt)
    arguments = ["reproduce", "--quick", "--seeds", "2", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == cli.INTERRUPTED
    rows = json.loads((tmp_path / "table1.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["optimal", "pg_ape"]
    assert "interrupted after 2 of 6 rows" in capfd.readouterr().out


def _interrupt(self, name, target, report):
    raise KeyboardInterrupt
