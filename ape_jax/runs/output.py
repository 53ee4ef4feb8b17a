"""Where a run is written, checked without JAX."""

import dataclasses
from pathlib import Path

from ape_jax.errors import SettingError


@dataclasses.dataclass(frozen=True)
class Output:
    """Where a run is written, and what is kept of it."""

    path: Path
    overwrite: bool = False
    """Whether a run that is already there is replaced."""
    resume: bool = False
    """Whether the run that is already there is continued."""
    keep: int = 3
    """Number of the newest checkpoints that are kept, besides the best."""

    def __post_init__(self):
        if self.keep < 1:
            raise SettingError(f"keep must be at least 1; got {self.keep}")

    def check_free(self) -> None:
        """Raise SettingError if there is a run that is to be neither replaced nor continued."""
        if holds_run(self.path) and not (self.overwrite or self.resume):
            raise SettingError(
                f"out must not hold a run already; {self.path} does. Choose another directory, "
                f"continue with --resume {self.path}, or add --overwrite"
            )


def holds_run(path: Path) -> bool:
    """Whether a run was started in a directory."""
    return (path / "config.yaml").exists()
