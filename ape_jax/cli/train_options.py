"""The options of ``ape-jax train``, and the records that they become.

Nothing here needs JAX.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict

import tyro

from ape_jax import presets
from ape_jax.errors import SettingError
from ape_jax.runs.output import Output, holds_run
from ape_jax.settings.run import ALL_SETTINGS, HELP, RunConfig, read_settings, resolve
from ape_jax.training.place import Cluster, Place

OUT = Path("runs/train")
"""Directory of a new run that is given no other."""


def _flags() -> dict[str, Any]:
    """Type and help text of the flag of every setting; each help text ends with the default."""
    default = resolve({"algorithm": "ppo"}).to_flat() | resolve({}).to_flat()
    return {
        name: Annotated[
            kind,
            tyro.conf.arg(help=HELP[name], help_behavior_hint=f"(default: {default[name]})"),
        ]
        for name, kind in ALL_SETTINGS.items()
        if name != "env_param"
    }


Settings = TypedDict("Settings", _flags(), total=False)  # type: ignore[misc]
"""The settings that were given as flags, and only those."""


@dataclasses.dataclass(frozen=True)
class Watch:
    """Options for those who watch a training."""

    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    """Show no live view, and only warnings."""
    tensorboard: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write curves for TensorBoard, in the run's directory."""
    wandb: str | None = None
    """Project of Weights & Biases that gets the curves. WANDB_MODE=offline keeps them on disk."""


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Train an adversarial policy ensemble, with several seeds side by side.

    Settings come from the recipe of --algorithm, --head and --min-return, or from a --preset; a
    --config file overrides the recipe, and flags override all of them. The defaults below are those
    of the recipe without any flag.
    """

    settings: tyro.conf.OmitArgPrefixes[Settings]
    env_param: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(help=HELP["env_param"])
    ] = ()
    preset: Annotated[
        str | None,
        tyro.conf.arg(help=f"Settings that go together: one of {', '.join(presets.names())}."),
    ] = None
    config: Path | None = None
    """YAML file of settings, named as the flags but with underscores. The config.yaml of a run is
    such a file."""
    out: Annotated[Path | None, tyro.conf.arg(help_behavior_hint=f"(default: {OUT})")] = None
    """Directory of the run."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the run that --out already holds."""
    resume: Path | None = None
    """Continue the run in this directory from its newest checkpoint, with its own settings. It ends
    as if it had never been stopped."""
    keep: int = Output.keep
    """Number of the newest checkpoints that are kept, besides the best."""
    watch: tyro.conf.OmitArgPrefixes[Watch] = Watch()
    devices: int | None = None
    """Number of devices of each process that share seeds and environments; if not given, as many as
    divide them evenly. A CPU is one device, or as many as are asked for. Another number rounds sums
    differently."""
    distributed: tyro.conf.FlagCreatePairsOff[bool] = False
    """Train together with other processes, on this machine or others. Process 0 writes the run; all
    must be started with the same settings."""
    coordinator: str | None = None
    """Address host:port of process 0. Clusters such as SLURM are detected without it."""
    num_processes: int | None = None
    """Number of processes. Clusters such as SLURM are detected without it."""
    process_id: int | None = None
    """Number of this process, from 0. Clusters such as SLURM are detected without it."""


class Parts(NamedTuple):
    """The options of the command, as the records that the parts of the package need."""

    config: RunConfig
    place: Place
    output: Output
    watch: Watch


def unpack(options: TrainOptions) -> Parts:
    """Sort the options into records, and check everything that needs no computing."""
    cluster = Cluster(options.coordinator, options.num_processes, options.process_id)
    if not options.distributed and cluster != Cluster():
        raise SettingError(
            "coordinator, num_processes and process_id go with --distributed; add it"
        )
    parts = Parts(
        _config(options),
        Place(options.devices, cluster if options.distributed else None),
        _output(options),
        options.watch,
    )
    if not options.process_id:  # Process 0 may already have started the run of the others.
        parts.output.check_free()
    return parts


def _config(options: TrainOptions) -> RunConfig:
    given: dict[str, Any] = dict(options.settings)
    if options.env_param:
        given["env_param"] = options.env_param
    layers = [("preset", options.preset), ("config", options.config), ("resume", options.resume)]
    whole = [(name, value) for name, value in layers if value is not None]
    if len(whole) > 1:
        (one, first), (other, second), *_ = whole
        raise SettingError(
            f"{one} and {other} each give all settings; got {first} and {second}. Leave one out"
        )
    if options.preset is not None:
        return resolve(presets.config(options.preset).to_flat(), given)
    if options.config is not None:
        return resolve(read_settings(options.config), given)
    if options.resume is not None:
        return _own_config(options.resume, given)
    return resolve(given)


def _own_config(run: Path, given: dict[str, Any]) -> RunConfig:
    """The settings of a run that is resumed, which flags may repeat but not change."""
    if not holds_run(run):
        raise SettingError(
            f"resume must be the directory of a run; {run} holds no config.yaml. Train with "
            "--out, or name another directory"
        )
    config = RunConfig.load(run / "config.yaml", complete=True)
    own = config.to_flat()
    for name, value in given.items():
        value = list(value) if isinstance(value, tuple) else value
        if name not in own or own[name] != value:
            raise SettingError(
                f"resume continues with the run's own settings; its {name} is {own.get(name)!r}, "
                f"got {value!r}. Leave it out, or train another run"
            )
    return config


def _output(options: TrainOptions) -> Output:
    if options.resume is None:
        return Output(options.out or OUT, overwrite=options.overwrite, keep=options.keep)
    if options.overwrite or options.out not in (None, options.resume):
        raise SettingError(
            "resume writes to the run that it continues; got "
            f"{'overwrite' if options.overwrite else f'out {options.out}'}. Leave it out"
        )
    return Output(options.resume, resume=True, keep=options.keep)
