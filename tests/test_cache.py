"""The command line keeps what it compiles."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_second_start_finds_what_the_first_compiled(tmp_path, monkeypatch):
    """In the user's cache folder."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def train(number):
        program = "from ape_jax.cli import main; main()"
        settings = ["--num-updates", "1", "--envs-per-expert", "4", "--out", f"{tmp_path}/{number}"]
        subprocess.run([sys.executable, "-c", program, "train", *settings], check=True, timeout=300)
        return {path.name for path in (tmp_path / "cache").rglob("*-cache")}

    first = train(1)
    assert first
    assert train(2) == first
