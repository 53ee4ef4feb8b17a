import errno
import io
import json

import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax.algorithms.common import Metrics
from ape_jax.reporting import tables
from ape_jax.runs import metrics
from ape_jax.types import DamagedError


def test_fingerprint_changes_with_any_bit_and_with_nothing_else():
    params = {"a": jnp.arange(3.0), "b": (jnp.ones((2, 2)),)}
    same = {"b": (jnp.ones((2, 2)),), "a": jnp.arange(3.0)}
    assert metrics.fingerprint(params) == metrics.fingerprint(same)
    assert len(metrics.fingerprint(params)) == 64
    others = [
        {"a": jnp.arange(3.0).at[1].set(jnp.nextafter(1.0, 2.0)), "b": (jnp.ones((2, 2)),)},
        {"a": jnp.arange(3.0), "b": (jnp.ones(4),)},
        {"a": jnp.arange(3), "b": (jnp.ones((2, 2)),)},
    ]
    assert metrics.fingerprint(params) not in [metrics.fingerprint(other) for other in others]


def three_updates():
    """Metrics of two seeds and four experts."""
    fields = {name: np.zeros((2, 3)) for name in Metrics._fields}
    fields["pe_return"] = np.arange(6.0).reshape(2, 3)
    fields["expert_returns"] = np.zeros((2, 3, 4))
    return Metrics(**fields)


def test_metrics_file_has_one_line_an_update_for_all_seeds(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = metrics.MetricsFile(path)
    file.append(three_updates(), 0)
    file.append(three_updates()._replace(policy_loss=np.full((2, 3), np.inf)), 3)
    lines = metrics.read_updates(path)
    assert [line["update"] for line in lines] == list(range(6))
    assert lines[1]["pe_return"] == [1.0, 4.0]
    assert np.shape(lines[5]["expert_returns"]) == (2, 4)
    assert lines[5]["policy_loss"] == [None, None]  # JSON has no infinity.


def test_continued_metrics_file_is_the_uninterrupted_one(tmp_path):
    path, straight = tmp_path / "metrics.jsonl", tmp_path / "straight.jsonl"
    file = metrics.MetricsFile(path)
    file.append(three_updates(), 0)
    file.append(three_updates(), 3)
    with path.open("a") as torn:
        torn.write('{"update": 6, "pe_re')
    assert len(metrics.read_updates(path)) == 6  # Whole lines only.
    metrics.MetricsFile(path, 3).append(three_updates(), 3)
    whole = metrics.MetricsFile(straight)
    for first in (0, 3):
        whole.append(three_updates(), first)
    assert path.read_bytes() == straight.read_bytes()


@pytest.mark.parametrize(
    ("damage", "line"), [("removed", 1), ("cut", 3), ("flipped", 1), ("swapped", 2)]
)
def test_metrics_file_without_the_lines_to_keep_is_refused(tmp_path, damage, line):
    path = tmp_path / "metrics.jsonl"
    metrics.MetricsFile(path).append(three_updates(), 0)
    content = path.read_bytes()
    first, second, third = content.splitlines(keepends=True)
    changed = {
        "cut": content[:-1],
        "flipped": bytes([content[0] ^ 1]) + content[1:],
        "swapped": first + third + second,
    }
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(changed[damage])
    with pytest.raises(DamagedError, match=rf"metrics\.jsonl .*line {line} is"):
        metrics.MetricsFile(path, 3)


def test_lines_that_cannot_be_written_leave_none_half_written(tmp_path, monkeypatch):
    """A disk that takes only so many more bytes."""
    path = tmp_path / "metrics.jsonl"
    file = metrics.MetricsFile(path)
    file.append(three_updates(), 0)
    before = path.read_bytes()
    full = OSError(errno.ENOSPC, "No space left on device")

    class Full(io.FileIO):
        def write(self, content):
            super().write(content[:50])
            raise full

    monkeypatch.setattr(metrics.Path, "open", lambda self, mode: Full(self, mode))
    with pytest.raises(OSError, match="No space left"):
        file.append(three_updates(), 3)
    assert path.read_bytes() == before


def test_write_json_replaces_whole_files(tmp_path):
    path = tmp_path / "x.json"
    metrics.write_json(path, {"a": 1})
    metrics.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_markdown_table_has_a_rule_and_a_line_each():
    text = tables.markdown_table(["a", "b"], [["p(c|s)", "1"], ["y", "2"]])
    assert text.splitlines() == ["| a | b |", "| --- | ---: |", r"| p(c\|s) | 1 |", "| y | 2 |"]
