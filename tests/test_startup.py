"""Imports come when they are needed: few at first, and gymnax without what it draws with."""

import ast
import gc
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

import ape_jax
from ape_jax import cli
from ape_jax.envs._gymnax import stand_ins

DRAWING = {"matplotlib.pyplot", "pandas", "scipy.stats", "seaborn"}
ONLY_SOME_COMMANDS = {"jinja2", "orbax.checkpoint", "rich.progress", "safetensors", "tyro"}
COMPUTING = {"flax", "gymnax", "jax", "jaxlib", "jaxtyping", "matplotlib", "numpy", "optax"}


def imported_by(program, *arguments, code=0):
    """Names of the modules that a fresh process has imported after a program."""
    with tempfile.NamedTemporaryFile("r") as names:
        report = (
            "import atexit, pathlib, sys\n"
            "def report():\n"
            f"    pathlib.Path({names.name!r}).write_text(' '.join(sys.modules))\n"
            "atexit.register(report)\n"
        )
        finished = subprocess.run(
            [sys.executable, "-c", report + program, *arguments], capture_output=True, text=True
        )
        assert finished.returncode == code, finished.stderr
        return set(names.read().split())


def test_package_alone_imports_nothing_to_compute_with():
    found = imported_by("import ape_jax")
    assert "ape_jax" in found
    assert not found & (COMPUTING | DRAWING | ONLY_SOME_COMMANDS)


def test_public_names_import_neither_what_draws_nor_what_single_commands_need():
    found = imported_by("from ape_jax import *; make_train, suite")
    assert {"gymnax", "jax"} <= found
    assert not found & (DRAWING | ONLY_SOME_COMMANDS)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("--help", 0),
        ("--version", 0),
        ("train --help", 0),
        ("audit --help", 0),
        ("train --learning-rate fast", 2),
        ("fly", 2),
    ],
)
def test_help_and_refused_flags_need_no_jax(command, code):
    found = imported_by("from ape_jax.cli import main; main()", *command.split(), code=code)
    assert "tyro" in found
    assert not found & (COMPUTING | DRAWING)


def test_training_imports_nothing_that_draws(tmp_path):
    settings = ["--num-updates", "1", "--envs-per-expert", "1", "--out", str(tmp_path / "run")]
    found = imported_by("from ape_jax.cli import main; main()", "train", *settings)
    assert "orbax.checkpoint" in found
    assert not found & DRAWING


def test_every_public_name_is_there():
    assert sorted(dir(ape_jax)) == sorted(ape_jax.__all__)
    for name in ape_jax.__all__:
        assert getattr(ape_jax, name) is not None
    with pytest.raises(AttributeError, match="module 'ape_jax' has no attribute 'make_brain'"):
        ape_jax.make_brain  # noqa: B018


def test_names_are_imported_from_where_type_checkers_find_them():
    tree = ast.parse(Path(ape_jax.__file__).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    shown = {name.name: line.module for line in block.body for name in line.names}
    assert shown.keys() | {"__version__"} == set(ape_jax.__all__)
    for name, module in shown.items():
        found = getattr(sys.modules[module], name)
        assert getattr(ape_jax, name) is found


def test_environments_of_gymnax_can_be_drawn():
    """By those that import pyplot and seaborn, and by what imports them later."""
    program = """
import sys
import ape_jax.envs
import gymnax, jax
assert not {"matplotlib.pyplot", "seaborn"} & sys.modules.keys()
key = jax.random.key(0)
for name in ("Catch-bsuite", "FourRooms-misc", "MetaMaze-misc", "PointRobot-misc", "Pong-misc"):
    env, params = gymnax.make(name)
    _, state = env.reset(key, params)
    env.render(state, params)
    import matplotlib.pyplot as plt
    assert plt.gcf().axes, name
    plt.close("all")
from gymnax.visualize import Visualizer
env, params = gymnax.make("Breakout-MinAtar")
_, state = env.reset(key, params)
Visualizer(env, params, [state], [0.0]).animate(None)
import seaborn
assert plt is sys.modules["matplotlib.pyplot"] and plt.subplots.__module__ == "matplotlib.pyplot"
assert type(plt) is type(sys) and type(seaborn) is type(sys)
"""
    assert imported_by(program) >= {"matplotlib.pyplot", "seaborn"}


@pytest.fixture(params=["shelve", "wsgiref.validate"])
def unused(request):
    """A module that nothing here imports."""
    assert request.param not in sys.modules
    yield request.param
    if sys.modules.pop(request.param, None) is not None:
        package, _, name = request.param.rpartition(".")
        if package:  # Where the next import statement would find it.
            delattr(sys.modules[package], name)


def importing(name):
    """Run ``import NAME as module`` as it is written in a program."""
    scope = {}
    exec(f"import {name} as module", scope)
    return scope["module"]


def test_stand_in_loads_the_module_at_its_first_use_and_not_before(unused):
    with stand_ins(unused):
        modules = [importing(unused) for _ in range(3)]
    assert unused not in sys.modules
    assert modules[0] is modules[1] is modules[2]
    path = modules[0].__file__
    assert path == sys.modules[unused].__file__ == importing(unused).__file__
    assert importing(unused) is not modules[0]


def test_stand_in_gives_way_while_it_is_there(unused):
    """To another thread that imports the module for its own use."""
    with stand_ins(unused):
        found = []
        thread = threading.Thread(target=lambda: found.append(importing(unused).__file__))
        thread.start()
        thread.join()
        assert found == [sys.modules[unused].__file__]
        real = sys.modules[unused]
    assert importing(unused) is real


def test_module_that_is_imported_already_keeps_its_place(unused):
    real = importing(unused)
    with stand_ins(unused):
        assert importing(unused) is real
    assert sys.modules[unused] is real


def test_no_stand_in_is_left_after_an_error(unused):
    with pytest.raises(ImportError), stand_ins(unused):
        raise ImportError
    assert unused not in sys.modules


def test_command_in_a_process_of_others_leaves_its_garbage_collector_alone(tmp_path):
    before = gc.get_freeze_count()
    with pytest.raises(SystemExit):
        cli.main(["plot", str(tmp_path)])
    assert gc.isenabled()
    assert gc.get_freeze_count() == before


def test_command_in_its_own_process_draws_into_files_only(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "TkAgg")
    program = """
from ape_jax.cli import main
try:
    main()
except SystemExit:
    import matplotlib
    assert matplotlib.get_backend().lower() == "agg"
"""
    assert "ape_jax.cli.plot" in imported_by(program, "plot", "nowhere")


def test_loops_of_a_command_are_compiled_to_functions_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_of_the_user=1")
    with cli._own_process():
        flags = os.environ["XLA_FLAGS"].split()
    assert flags == [*cli.SMALL_LOOPS.split(), "--xla_of_the_user=1"]
