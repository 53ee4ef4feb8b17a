"""The command line as tests use it: in this process, with tasks that share compiled programs."""

import functools
import signal

import pytest

from ape_jax import cli
from ape_jax.algorithms.task import make_task
from ape_jax.cli import train
from ape_jax.runs import loop

TASKS = functools.cache(make_task)
"""One task per configuration, so that trainings with the same settings compile once."""

PG = ["--num-updates", "8", "--envs-per-expert", "4", "--seeds", "2", "--first-seed", "5"]
PG += ["--observer", "learned", "--min-return", "-50", "--save-every", "2", "--quiet"]
PPO = ["--algorithm", "ppo", "--env", "Pendulum-v1", "--head", "gaussian", "--hidden-sizes", "4"]
PPO += ["--env-param", "max_steps_in_episode=20", "--env-param", "g=9.5", "--envs-per-expert", "4"]
PPO += ["--rollout-length", "16", "--num-epochs", "1", "--num-minibatches", "2", "--seeds", "2"]
PPO += ["--observer", "learned", "--constraint", "gate", "--min-return", "-200"]
PPO += ["--init-temperature", "0.5", "--num-updates", "8", "--save-every", "2", "--quiet"]


def run(*arguments):
    """Exit code of a command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_task", TASKS)
        with pytest.raises(SystemExit) as error:
            cli.main([str(argument) for argument in arguments])
    return error.value.code


def signal_in_chunk(monkeypatch, index, number=signal.SIGINT):
    """Send a signal to this process while a chunk of the training is computed."""

    def interrupted(chunks):
        for count, chunk in enumerate(chunks):
            if count == index:
                signal.raise_signal(number)
            yield chunk

    monkeypatch.setattr(train, "fit", lambda chunks, *rest: loop.fit(interrupted(chunks), *rest))
