"""The subjects of an audit: a run, a file of demonstrations, a task, or all defences."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from ape_jax import envs
from ape_jax.algorithms.task import Task, make_task
from ape_jax.config import Hypers, PGConfig, recipe
from ape_jax.demonstrations import collect, files
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.evaluation import defences
from ape_jax.evaluation.defences import Ensemble
from ape_jax.evaluation.progress import ProgressFn, train
from ape_jax.runs import checkpoint
from ape_jax.runs.metrics import fingerprint
from ape_jax.settings.audit import ALL, AuditSettings
from ape_jax.settings.names import PGHeadName
from ape_jax.training.trainer import EVALUATE, seed_keys
from ape_jax.types import Params, SettingError

RUN = "run"

QUICK_UPDATES = 400


class Given(NamedTuple):
    """Demonstrations of a file; each seed has a resample of the episodes."""

    shown: Demonstrations
    """[K, N, …]."""
    held_out: Demonstrations
    """[K, M, …]: episodes that no resample draws from."""
    pe_return: np.ndarray
    """Mean return of a resample's episodes [K]."""


class Subject(NamedTuple):
    """The ensembles that are audited, and what they need."""

    env: str
    task: Task
    keys: Key[Array, " K"]
    """Evaluation keys, one for each seed."""
    ensembles: Iterator[Ensemble]
    """Each is trained when its turn comes."""
    num_ensembles: int
    given: Given | None = None
    """None where demonstrations are sampled from the ensembles."""
    fingerprint: str | None = None


def names_of(text: str) -> list[str]:
    """Different names in a text, in their order."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def find(
    subject: Path | str | Task | None,
    settings: AuditSettings,
    progress: ProgressFn,
    heads: Params | None = None,
    hypers: Hypers | None = None,
) -> Subject:
    """The subject of an audit; the arguments are those of ``audit``.

    Raises:
      SettingError: it cannot be audited.
    """
    if settings.seeds is not None and settings.seeds < 1:
        raise SettingError(f"seeds must be at least 1; got {settings.seeds}")
    task, name, digest, first_seed = None, "the task", None, settings.first_seed
    seeds = settings.seeds or (3 if settings.quick else 10)
    if subject is None:
        config, hypers = recipe("tabular")
    elif isinstance(subject, Task):
        task, config = subject, subject.config
        hypers = hypers or recipe(config.head, algorithm=config.algorithm)[1]
    else:
        path = Path(subject)
        if not path.exists():
            raise SettingError(
                f"run must be a run of ape-jax train or a file of demonstrations; no {path}"
            )
        if path.is_file():
            return _file(path, settings)
        if settings.first_seed:
            given = settings.first_seed
            raise SettingError(
                f"first_seed must be left out for a run, which has its own; got {given}"
            )
        run, task, params = checkpoint.load_run(path)
        config, hypers, heads, first_seed = run.train, run.hypers, params.heads, run.first_seed
        name, digest = str(path), fingerprint(params)
    if task is not None and task.networks.action_bounds is not None:
        raise SettingError(
            f"run must have discrete actions; those of {name} are continuous, which audit cannot "
            "score. Use ape-jax suite, or observers.MeanAction and the like in Python"
        )
    if heads is not None:
        trained = len(jax.tree.leaves(heads)[0])
        seeds = settings.seeds or trained
        if seeds > trained:
            raise SettingError(
                f"seeds must be at most the {trained} of the run; got {seeds}. "
                f"Train with --seeds {seeds}"
            )
    if settings.quick:
        config = dataclasses.replace(config, num_updates=min(config.num_updates, QUICK_UPDATES))
    train_keys, world = seed_keys(first_seed, seeds), None if task is None else task.world
    setting = defences.prepare(config, hypers, train_keys, progress, world)
    chosen = _chosen(settings, setting, task is not None)

    def ensembles():
        if task is not None:
            own = heads
            if own is None:
                own = train(RUN, task, train_keys, hypers, progress)[0].params.heads
            own = jax.tree.map(lambda x: x[:seeds], own)
            yield defences.adopt(setting, RUN, task.networks, own)
        for name in chosen:
            yield defences.make(setting, name)

    return Subject(
        env=config.env,
        task=setting.task,
        keys=seed_keys(first_seed, seeds, EVALUATE),
        ensembles=ensembles(),
        num_ensembles=len(chosen) + (task is not None),
        fingerprint=digest,
    )


def _chosen(settings: AuditSettings, setting: defences.Setting, has_run: bool) -> list[str]:
    """Names of the defences to make."""
    if settings.defences == ALL or (settings.defences is None and not has_run):
        return defences.available(setting)
    chosen = names_of(settings.defences or "")
    defences.check(setting, chosen)
    if not chosen and not has_run:
        raise SettingError("defences must hold one where there is no run; got none")
    return chosen


def _file(path: Path, settings: AuditSettings) -> Subject:
    """A file of demonstrations in place of an ensemble."""
    for name in ("defences", "steps"):
        if (value := getattr(settings, name)) is not None:
            raise SettingError(f"{name} must be left out for a demonstration file; got {value}")
    seeds = settings.seeds or 5
    file = files.load(path)
    env, params = envs.make(file.env_id, envs.parse_overrides(file.env_param))
    if not isinstance(env.action_space(params), envs.spaces.Discrete):
        raise SettingError(
            f"run must hold discrete actions; those in {path} are continuous, which audit cannot "
            "score. Fit observers.MeanAction or observers.MixtureDensityNetwork in Python instead"
        )
    space = env.observation_space(params)
    head: PGHeadName = "conv" if len(space.shape) == 3 else "mlp"
    if isinstance(space, envs.spaces.Discrete):
        head = "tabular"
    task = make_task(PGConfig(env=file.env_id, env_param=file.env_param, num_experts=1, head=head))
    fitted, kept = collect.hold_out(file.demonstrations)
    numbers = range(settings.first_seed, settings.first_seed + seeds)
    samples = [collect.resample(fitted, seed) for seed in numbers]
    everything = collect.complete_returns(file.demonstrations)
    episode_returns = [collect.complete_returns(sample) for sample in samples]
    # A sample of very few steps may hold no complete episode.
    pe_return = np.array([np.mean(some if len(some) else everything) for some in episode_returns])
    shown = jax.tree.map(lambda *x: jnp.stack(x), *samples)
    held_out = jax.tree.map(lambda x: jnp.broadcast_to(x, (seeds, *x.shape)), kept)
    keys = seed_keys(settings.first_seed, seeds, EVALUATE)
    ensembles = iter([Ensemble("demonstrations", 0, None)])
    given = Given(shown, held_out, pe_return)
    return Subject(file.env_id, task, keys, ensembles, 1, given)
