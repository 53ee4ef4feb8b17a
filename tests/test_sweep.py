import dataclasses
import json

import jax
import numpy as np
import pytest
from command_line import run

from ape_jax.algorithms import updates
from ape_jax.algorithms.pg import create_state
from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PGHypers
from ape_jax.evaluation import sweep
from ape_jax.training.trainer import seed_keys

SMALL = ["--seeds", "2", "--num-updates", "4", "--betas", "0.1,0.6"]


def point(observer, training, beta, pe_return, clone_return):
    return {
        "observer": observer,
        "training": training,
        "beta": beta,
        "pe_return": {"mean": pe_return},
        "clone_return": {"mean": clone_return},
    }


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
    second, third = sweep.compare(points)
    assert (second["beta"], second["pe_return"]) == (0.2, -12.0)
    assert second["exact_gap"] == pytest.approx(38.0)
    assert second["sampled_gap"] == pytest.approx(28.0)
    assert second["ratio"] == pytest.approx(28 / 38)
    assert (third["beta"], third["exact_gap"], third["ratio"]) == (0.3, 0.0, None)


def test_nothing_is_compared_without_an_exact_frontier():
    assert sweep.compare([point("uniform", "sampled", 0.1, -10.0, -20.0)]) == []


def test_swept_runs_are_those_that_train_alone():
    """The same seed and β, side by side with others or by themselves."""
    config = PGConfig(num_updates=3, envs_per_expert=4)
    ours = list(
        sweep.Sweep(config, PGHypers(), (0.1, 0.6), 2, 5).sampled("uniform", lambda _: None)
    )
    task = make_task(config)
    for swept, beta in zip(ours, (0.1, 0.6), strict=True):
        hypers = dataclasses.replace(PGHypers(), beta=beta)
        for index, key in enumerate(seed_keys(5, 2)):
            state = create_state(key, task.networks, hypers)
            state, _ = jax.jit(updates, static_argnums=(0, 3))(task, state, hypers, 3)
            heads = jax.tree.map(lambda x: x[None], state.params.heads)
            alone = sweep.Sweep(config, PGHypers(), (beta,), 1, 5)._measure_seeds(
                task, "uniform", heads, seed_keys(5, 1)
            )
            np.testing.assert_allclose(swept.returns.pe[index], alone.pe[0], rtol=1e-4)
            np.testing.assert_allclose(swept.returns.clone[index], alone.clone[0], rtol=1e-4)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        exact_train = sweep.exact.train
        patch.setattr(sweep.exact, "train", lambda *a, **k: exact_train(*a, **k, num_updates=5))
        assert run("sweep", *SMALL, "--out", out) == 0
    return out


def test_sweep_writes_every_point_and_a_figure(swept):
    assert {path.name for path in swept.iterdir()} == {"sweep.json", "sweep.md", "frontier.png"}
    content = json.loads((swept / "sweep.json").read_text())
    assert content["seeds"] == 2
    kinds = [(p["observer"], p["training"], p["beta"]) for p in content["points"]]
    assert kinds == [
        (observer, training, beta)
        for observer in ("uniform", "greedy")
        for training in ("sampled", "exact")
        for beta in (0.1, 0.6)
    ]
    for p in content["points"]:
        assert len(p["clone_return"]["values"]) == 2
        assert p["worst_expert"]["mean"] <= p["pe_return"]["mean"] + 1e-6


def test_sweep_of_an_environment_without_a_finite_mdp_has_samples_alone(tmp_path):
    arguments = ["--env", "Catch-bsuite", "--head", "mlp", "--seeds", "1", "--num-updates", "2"]
    assert run("sweep", *arguments, "--betas", "0.5", "--out", tmp_path) == 0
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert {p["training"] for p in content["points"]} == {"sampled"}
    assert content["comparison"] == []


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
        (["--betas", "-1"], "betas must be numbers >= 0"),
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
