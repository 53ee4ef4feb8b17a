"""Programs compiled for accelerators do not grow, and send the messages that they need alone."""

import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks import aot

RECORDED = Path(__file__).parents[2] / "benchmarks" / "results" / "accelerators.json"
GROWTH = 1.05

if not all(map(importlib.util.find_spec, ("libtpu", "jax_cuda13_plugin"))):
    pytest.skip('compilers are not installed: pip install ".[test,aot]"', allow_module_level=True)


@pytest.mark.parametrize(
    ("program", "target"),
    [("pg-tabular-1024", "h100"), ("pg-tabular-1024", "v5e"), ("ppo-cartpole", "h100")],
)
def test_kernels_and_cycles_do_not_grow_over_the_recorded_ones(program, target):
    result = json.loads(RECORDED.read_text())
    recorded = {(row["program"], row["target"]): row for row in result["rows"]}[program, target]
    found = aot.row_of(program, target)
    for name in ("kernels", "cycles"):
        if recorded[name] is not None:
            assert found[name] <= GROWTH * recorded[name], (
                f"{name} must be at most {GROWTH} x {recorded[name]}, as recorded with "
                f"{result['versions']}; got {found[name]}. Where that is meant, record it anew: "
                f"python -m benchmarks.accelerators --out {RECORDED}"
            )


def test_seeds_on_several_chips_send_nothing_until_their_states_are_gathered():
    found = aot.row_of("pg-tabular-1024-seeds-sharded", "v5e-4")
    assert found["collectives"] == []
    assert found["collectives_at_end_of_chunk"]


def test_environments_on_several_chips_send_one_message_an_update():
    found = aot.row_of("pg-tabular-1024-envs-sharded", "v5e-4")
    (message,) = found["collectives"]
    assert (message["kind"], message["count"]) == ("all-reduce", 1)


@pytest.mark.parametrize(
    ("target", "cost", "most"), [("h100", "kernels", 60), ("v5e", "cycles", 850_000)]
)
def test_the_pallas_kernels_compile_and_save_launches_and_cycles(target, cost, most):
    """They have not run on either device: of theirs, this is all that is known."""
    assert aot.row_of("pg-tabular-1024-pallas", target)[cost] <= most
