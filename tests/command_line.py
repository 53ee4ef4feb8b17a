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


def run(*arguments):
    """Exit code of a command."""
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
