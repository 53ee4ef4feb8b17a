"""The sweep over β: the comparison by hand, runs that train alone, and the command."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import report_sources
from command_line import run

import ape_jax
from ape_jax.algorithms import updates
from ape_jax.algorithms.pg import create_state
from ape_jax.algorithms.task import make_task
from ape_jax.cli.output import INTERRUPTED
from ape_jax.config import PGConfig, PGHypers
from ape_jax.core import tabular
from ape_jax.evaluation import records
from ape_jax.evaluation.intervals import Interval
from ape_jax.evaluation.sweep import Sweep, SweepPoint, compare
from ape_jax.training.trainer import seed_keys
from ape_jax.types import SettingError


def point(observer, training, beta, pe_return, clone_return):
    return SweepPoint(
        observer=observer,
        training=training,
        beta=beta,
        pe_return=Interval.over_seeds([pe_return]),
        worst_expert=Interval.over_seeds([pe_return]),
        clone_return=Interval.over_seeds([clone_return]),
    )


def test_gaps_are_compared_at_the_same_return():
    """By hand: at −12 the frontier between (−10, −10) and (−14, −90) has its clone at −50."""
    points = [
        point("uniform", "exact", 0.3, -14.0, -90.0),
        point("uniform", "exact", 0.1, -10.0, -10.0),
        point("uniform", "sampled", 0.1, -9.0, -9.0),
        point("uniform", "sampled", 0.2, -12.0, -40.0),
        point("uniform", "sampled", 0.3, -10.0, -20.0),
        point("greedy", "sampled", 0.3, -11.0, -20.0),
    ]
    second, third = compare(points)
    assert (second.beta, second.pe_return) == (0.2, -12.0)
    assert second.exact_gap == pytest.approx(38.0)
    assert second.sampled_gap == pytest.approx(28.0)
    assert second.ratio == pytest.approx(28 / 38)
    assert (third.beta, third.exact_gap, third.ratio) == (0.3, 0.0, None)


def test_nothing_is_compared_without_an_exact_frontier():
    assert compare([point("uniform", "sampled", 0.1, -10.0, -20.0)]) == ()


@pytest.fixture(scope="module")
def swept(small_grid):
    """Two weights and two seeds on nine cells."""
    return ape_jax.sweep([0.1, 0.6], small_grid, num_updates=3, seeds=2, first_seed=5)


def test_swept_runs_are_those_that_train_alone(swept, small_grid, small_mdp):
    """The same seed and β, side by side with others or by itself."""
    task = make_task(PGConfig(num_updates=3), small_grid)
    for found, beta in zip(swept.points, (0.1, 0.6), strict=False):
        assert (found.observer, found.training, found.beta) == ("uniform", "sampled", beta)
        hypers = dataclasses.replace(PGHypers(), beta=beta)
        for index, key in enumerate(seed_keys(5, 2)):
            state = create_state(key, task.networks, hypers)
            state, _ = jax.jit(updates, static_argnums=(0, 3))(task, state, hypers, 3)
            policies = jnp.exp(task.networks.tabulate_experts(state.params.heads))
            each = jax.vmap(tabular.policy_return, (None, 0))(small_mdp, policies)
            clone = tabular.policy_return(small_mdp, policies.mean(axis=0))
            np.testing.assert_allclose(found.pe_return.values[index], each.mean(), rtol=1e-4)
            np.testing.assert_allclose(found.worst_expert.values[index], each.min(), rtol=1e-4)
            np.testing.assert_allclose(found.clone_return.values[index], clone, rtol=1e-4)


def test_sweep_has_every_point(swept):
    assert (swept.env, swept.horizon, swept.seeds) == ("GridWorld-ape", 8, 2)
    assert [(p.observer, p.training, p.beta) for p in swept.points] == [
        (observer, training, beta)
        for observer in ("uniform", "greedy")
        for training in ("sampled", "exact")
        for beta in (0.1, 0.6)
    ]


@pytest.mark.slow
def test_there_are_samples_alone_without_a_finite_mdp():
    found = ape_jax.sweep([0.5], "Catch-bsuite", "mlp", num_updates=2, seeds=1)
    assert {p.training for p in found.points} == {"sampled"}
    assert found.comparison == ()


@pytest.mark.parametrize("code", [0, INTERRUPTED])
def test_command_writes_what_is_finished(code, tmp_path, monkeypatch):
    whole = report_sources.sweep()

    def made_up(progress, **settings):
        assert settings["betas"] == [0.5, 1.0]
        yield whole
        if code:
            raise KeyboardInterrupt

    monkeypatch.setattr("ape_jax.cli.sweep.sweep_steps", made_up)
    assert run("sweep", "--betas", "0.5,1", "--out", tmp_path) == code
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.json", "sweep.md", "frontier.png"}
    assert records.read(Sweep, tmp_path / "sweep.json") == whole


@pytest.mark.parametrize("betas", [[], [-0.1], [float("inf")]])
def test_weights_that_are_none_are_refused(betas):
    with pytest.raises(SettingError, match="betas must be one or more numbers >= 0"):
        ape_jax.sweep(betas)


def test_a_sweep_gone_astray_is_one_message(tmp_path, capfd):
    """In single precision β of this size times a return is infinite."""
    arguments = ["--seeds", "1", "--num-updates", "2", "--betas", "0.1,3e38"]
    assert run("sweep", *arguments, "--out", tmp_path) == 1
    printed = " ".join(capfd.readouterr().err.split())
    assert "not finite" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--betas", "0.1,x"], "betas must be numbers >= 0"),
        (["--betas", ""], "betas must be numbers >= 0"),
        (["--betas", "-1"], "betas must be one or more numbers >= 0"),
        (["--seeds", "0"], "seeds must be at least 1; got 0"),
        (["--env", "GridWorld"], "Nearest: GridWorld-ape"),
        (["--num-experts", "0"], "num_experts must be at least 1"),
        (["--env", "Pendulum-v1", "--head", "mlp"], "needs a discrete action space"),
    ],
)
def test_bad_settings_of_a_sweep_get_one_message(arguments, message, tmp_path, capfd):
    out = tmp_path / "sweep"
    assert run("sweep", *arguments, "--out", out) == 2
    printed = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert message in printed
    assert "Traceback" not in printed
    assert not out.exists()
