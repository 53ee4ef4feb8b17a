"""``ape-jax demos``: demonstrations of a trained run, in a file and in Minari."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import run

from ape_jax import cli
from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig
from ape_jax.core import tabular
from ape_jax.demonstrations import collect, files
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.envs import GRIDWORLD, adapters
from ape_jax.evaluation import subjects
from ape_jax.evaluation.audit_records import AuditSettings
from ape_jax.runs import checkpoint, demonstrate


def test_demos_writes_a_file_that_loads(pg_run, tmp_path, capfd):
    out = tmp_path / "made" / "shown.npz"
    assert run("demos", pg_run, "--steps", "3000", "--out", out) == 0
    _, shown, expert, _ = files.load(out)
    assert shown.action.shape == expert.shape == (3000,)
    assert set(np.unique(expert)) == {0, 1}
    printed = " ".join(capfd.readouterr().out.split())
    episodes = int(shown.episode[-1]) + 1
    assert f"seed 5: 3,000 steps in {episodes:,} episodes" in printed
    mean = collect.complete_returns(shown).mean()
    assert f"mean return of complete episodes {mean:.2f}" in printed
    assert f"{out.stat().st_size / 1e6:.2f} MB" in printed
    assert [path.name for path in out.parent.iterdir()] == ["shown.npz"]


def test_seed_picks_its_own_ensemble(pg_run):
    """Actions of seed 6 are those of its own heads: probable under them, and less under seed 5."""
    _, task, params = checkpoint.load_run(pg_run)
    sampled, seed = demonstrate.sample(pg_run, 3000, seed=6)
    assert (sampled.env_id, seed) == (GRIDWORLD, 6)

    def log_likelihood(index):
        heads = jax.tree.map(lambda leaf: leaf[index], params.heads)
        table = task.networks.tabulate_experts(heads)
        shown = sampled.demonstrations
        return float(table[sampled.hidden_expert, shown.observation, shown.action].mean())

    assert log_likelihood(1) > log_likelihood(0) + 0.1


def test_demonstrations_repeat_and_differ_between_seeds(pg_run):
    one, again, other = (demonstrate.sample(pg_run, 500, seed)[0] for seed in (None, 5, 6))
    np.testing.assert_array_equal(one.demonstrations.action, again.demonstrations.action)
    assert (one.demonstrations.action != other.demonstrations.action).any()


def test_episode_returns_are_those_of_complete_episodes():
    shown = Demonstrations(
        observation=np.zeros(6, np.int32),
        action=np.zeros(6, np.int32),
        reward=np.array([1, 2, 4, 8, 16, 32], np.float32),
        terminated=np.array([0, 1, 0, 0, 0, 0], bool),
        truncated=np.array([0, 0, 0, 0, 1, 0], bool),
        episode=np.array([0, 0, 1, 2, 2, 3], np.int32),
    )
    np.testing.assert_array_equal(collect.complete_returns(shown), [3, 24])


@pytest.mark.slow
def test_mean_return_is_the_ensemble_s_own(pg_run):
    """Within four standard errors of the exact mean over experts.

    Each parallel environment runs for ten time limits. The episode that it cuts short is left out,
    which favours short episodes by a little: half a step is allowed for it.
    """
    _, task, params = checkpoint.load_run(pg_run)
    heads = jax.tree.map(lambda leaf: leaf[0], params.heads)
    policies = jax.nn.softmax(task.networks.tabulate_experts(heads))
    exact = jax.vmap(tabular.policy_return, (None, 0))(task.world.mdp, policies).mean()
    returns = collect.complete_returns(demonstrate.sample(pg_run, 500_000)[0].demonstrations)
    assert abs(returns.mean() - exact) < 4 * returns.std() / len(returns) ** 0.5 + 0.5


def test_file_for_an_attacker_holds_no_expert(pg_run, tmp_path):
    out = tmp_path / "shown.npz"
    assert run("demos", pg_run, "--steps", "500", "--without-expert", "--out", out) == 0
    assert files.load(out).hidden_expert is None
    assert files.HIDDEN_EXPERT not in np.load(out).files


def test_file_is_replaced_only_if_asked_for(pg_run, tmp_path, capfd):
    out = tmp_path / "shown.npz"
    out.write_text("mine")
    assert run("demos", pg_run, "--steps", "500", "--out", out) == 2
    assert "add --overwrite" in capfd.readouterr().err
    assert out.read_text() == "mine"
    assert run("demos", pg_run, "--steps", "500", "--out", out, "--overwrite") == 0
    assert len(files.load(out).demonstrations.action) == 500


BAD = [
    (["--steps", "1"], "steps must be at least 2"),
    (["--steps", "-5"], "steps must be at least 2"),
    (["--steps", "10000000000"], "at most 100000000"),
    (["--steps", "many"], "--steps"),
    (["--steps", "2"], "enough for one complete episode; 2 were not. An episode has up to 100"),
    (["--seed", "4"], "holds seeds 5 to 6; got 4"),
    (["--seed", "7"], "holds seeds 5 to 6; got 7"),
    (["--minari", "no version"], "such as gridworld/ape-v0"),
    (["--bad"], "--bad"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: " ".join(value)[:40])
def test_bad_settings_get_one_message_and_leave_no_file(
    arguments, message, pg_run, tmp_path, capfd
):
    if "--minari" in arguments:
        pytest.importorskip("minari", reason='minari is not installed: pip install ".[interop]"')
    assert run("demos", pg_run, "--out", tmp_path / "shown.npz", *arguments) == 2
    printed = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert message in printed
    assert "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []


def test_directory_that_is_no_run_gets_one_message(tmp_path, capfd):
    assert run("demos", tmp_path, "--out", tmp_path / "new" / "shown.npz") == 2
    assert "run must be a directory that ape-jax train made" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_written_gets_one_message(pg_run, tmp_path, capfd):
    (tmp_path / "file").write_text("in the way")
    assert run("demos", pg_run, "--out", tmp_path / "file" / "shown.npz") == 2
    assert "out must be a file that can be written" in capfd.readouterr().err
    assert run("demos", pg_run, "--out", tmp_path) == 2
    assert "is a directory. Name a file in it" in " ".join(capfd.readouterr().err.split())


def test_interrupt_leaves_no_file(pg_run, tmp_path, monkeypatch, capfd):
    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    out = tmp_path / "shown.npz"
    assert run("demos", pg_run, "--steps", "500", "--out", out) == cli.INTERRUPTED
    assert list(tmp_path.iterdir()) == []
    assert "interrupted" in capfd.readouterr().err


def test_minari_dataset_comes_with_the_file(pg_run, tmp_path, monkeypatch):
    minari = pytest.importorskip(
        "minari", reason='minari is not installed: pip install ".[interop]"'
    )
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    out = tmp_path / "shown.npz"
    arguments = ["--steps", "500", "--out", out, "--minari", "gridworld/ape-v0"]
    assert run("demos", pg_run, *arguments) == 0
    dataset = minari.load_dataset("gridworld/ape-v0")
    shown = files.load(out).demonstrations
    actions = np.concatenate([episode.actions for episode in dataset.iterate_episodes()])
    np.testing.assert_array_equal(actions, shown.action)
    assert all(not episode.infos for episode in dataset.iterate_episodes())
    arguments = ["--steps", "500", "--out", tmp_path / "other.npz", "--minari", "gridworld/ape-v0"]
    assert run("demos", pg_run, *arguments) == 2
    assert not (tmp_path / "other.npz").exists()


@pytest.mark.parametrize(
    ("env", "head", "env_param"),
    [
        ("CartPole-v1", "mlp", ("max_steps_in_episode=7", "gravity=5.0")),
        ("Breakout-MinAtar", "conv", ("max_steps_in_episode=40",)),
    ],
)
def test_a_file_is_audited_in_the_environment_that_it_comes_from(env, head, env_param, tmp_path):
    """Parameters included; images by heads that take them."""
    task = make_task(PGConfig(env=env, env_param=env_param, head=head, hidden_sizes=(4,)))
    steps = jnp.arange(6)
    shown = Demonstrations(
        observation=jnp.zeros((6, *task.networks.observation_shape)),
        action=steps % 2,
        reward=jnp.ones(6),
        terminated=steps % 3 == 2,
        truncated=jnp.zeros(6, bool),
        episode=steps // 3,
    )
    out = tmp_path / "shown.npz"
    files.save(out, env, shown, env_param=env_param)
    assert files.load(out).env_param == env_param
    judged = subjects.find(out, AuditSettings(seeds=1), print).task
    assert judged.world.params == task.world.params
    assert judged.config.head == head


def test_gymnasium_face_has_the_parameters_too():
    world = adapters.to_gymnasium("FourRooms-misc", ("max_steps_in_episode=4", "fail_prob=0"))
    world.reset(seed=0)
    ends = [world.step(0)[2:4] for _ in range(4)]
    assert ends == [(False, False)] * 3 + [(False, True)]
