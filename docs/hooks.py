"""What the site holds besides the pages in docs/: made when it is built, never written by hand.

MkDocs calls the functions whose names begin with ``on_``. They need the ``docs`` extra; the rest
needs nothing but the package, so that tests can look at it.
"""

import contextlib
import dataclasses
import html
import io
import os
import re
import textwrap
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin
from unittest import mock

from ape_jax import cli, presets
from ape_jax.config import (
    ALL_SETTINGS,
    HELP,
    PGConfig,
    PGHypers,
    PPOConfig,
    PPOHypers,
    RunConfig,
    recipe,
)

ROOT = Path(__file__).parents[1]
SETTINGS = {kind.__name__: kind for kind in (PGConfig, PPOConfig, PGHypers, PPOHypers, RunConfig)}
OUTSIDE = (
    *("CHANGELOG.md", "benchmarks/README.md"),
    *("benchmarks/results/*.json", "benchmarks/results/*.png"),
    "notebooks/*.ipynb",
)
"""Files outside docs/ that are on the site, at the same place."""

RECIPES = {
    "tabular": recipe("tabular"),
    "tabular, min_return": recipe("tabular", min_return=-12.0),
    "mlp": recipe("mlp"),
    "mlp, min_return": recipe("mlp", min_return=-12.0),
    **{
        f"ppo, {head}{extra}": recipe(head, value, "ppo")
        for head in ("tabular", "mlp", "conv", "gaussian")
        for extra, value in (("", None), (", min_return", 1.0))
    },
}


def on_files(files, config):
    """Add what lies outside docs/; notebooks as Markdown, with their outputs."""
    from mkdocs.structure.files import File

    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            uri = path.relative_to(ROOT).as_posix()
            if path.suffix == ".ipynb":
                page, images = notebook(path)
                files.append(File.generated(config, _site_uri(uri), content=page))
                for name, content in images.items():
                    files.append(File.generated(config, f"notebooks/{name}", content=content))
            else:
                files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Fill in what a page leaves to the build, and lead its links to their places on the site."""
    # A bar within code, which GitHub's tables want escaped and Python's do not.
    markdown = re.sub(r"`[^`\n]+`", lambda match: match[0].replace(r"\|", "|"), markdown)
    return site_links(filled(markdown), page.file.src_uri)


def on_page_content(content, page, config, files):
    """Formulas as MathML, which browsers show without any script."""
    from latex2mathml.converter import convert

    def formula(match):
        display = "block" if match["tag"] == "div" else "inline"
        return convert(html.unescape(match["formula"]), display=display)

    pattern = r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<formula>.*?)\\[)\]]</(?P=tag)>'
    return re.sub(pattern, formula, content, flags=re.DOTALL)


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its images by name."""
    from nbconvert import MarkdownExporter

    page, resources = MarkdownExporter().from_filename(
        str(path), resources={"unique_key": path.stem}
    )
    return page, resources.get("outputs", {})


def filled(markdown: str) -> str:
    """A page in which every ``<!-- make: … -->`` has been replaced by what it names."""

    def made(match):
        what, _, name = match[1].partition(" ")
        return {
            "help": help_text,
            "settings": lambda name: settings_table(SETTINGS[name]),
            "recipes": lambda _: recipes_table(),
            "presets": lambda _: presets_table(),
        }[what](name)

    return re.sub(r"<!-- make: (.*?) -->", made, markdown)


def site_links(markdown: str, uri: str) -> str:
    """A page whose links out of docs/ lead to the same files on the site.

    Of a link to what is in the repository alone the words stay.
    """
    is_inside = not any(Path(uri).match(pattern) for pattern in (*OUTSIDE, "notebooks/*.md"))
    here = Path(*("docs",) if is_inside else (), uri).parent

    def moved(match):
        path = os.path.normpath(here / match["target"])
        if path.startswith("docs/"):
            path = path.removeprefix("docs/")
        elif not any(Path(path).match(pattern) for pattern in OUTSIDE):
            return match["words"] if (ROOT / path).exists() else match[0]
        there = os.path.relpath(_site_uri(path), Path(uri).parent)
        return f"[{match['words']}]({there}{match['anchor'] or ''})"

    link = r"\[(?P<words>[^\[\]]*)\]\((?P<target>(?!\w+:)[^)#\s]+)(?P<anchor>#[^)]*)?\)"
    return re.sub(link, moved, markdown)


def _site_uri(path: str) -> str:
    return re.sub(r"^(notebooks/.*)\.ipynb$", r"\1.md", path)


def help_text(command: str) -> str:
    """What ``ape-jax COMMAND --help`` prints, to be unfolded."""
    text = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS="88"),
        contextlib.redirect_stdout(text),
        contextlib.suppress(SystemExit),
    ):
        cli.main([command, "--help"])
    shown = textwrap.indent(f"```text\n{text.getvalue().strip()}\n```", "    ")
    return f'??? note "ape-jax {command} --help"\n\n{shown}\n'


def settings_table(kind: type) -> str:
    """A table of the settings of a dataclass, with what their docstrings say."""
    lines = ["| setting | flag | values | default | meaning |", "| --- | --- | --- | --- | --- |"]
    for field in dataclasses.fields(kind):
        if field.default_factory is dataclasses.MISSING:
            name = field.name
            flag = f"--{name.replace('_', '-')}"
            cells = [
                f"`{name}`",
                f"`{flag}`",
                _values(ALL_SETTINGS[name]),
                f"`{_shown(field.default)}`",
            ]
            lines.append(f"| {' | '.join(cells)} | {_cell(HELP[name])} |")
    return "\n".join(lines)


def recipes_table() -> str:
    """What each recipe sets that is not the default."""
    found = {
        name: (RunConfig(train, hypers).to_flat(), RunConfig(type(train)(), type(hypers)()))
        for name, (train, hypers) in RECIPES.items()
    }
    return _differences("recipe", found)


def presets_table() -> str:
    """What each preset sets that its recipe does not."""
    found = {}
    for name in presets.names():
        preset = presets.config(name)
        base = recipe(preset.train.head, preset.hypers.min_return, preset.train.algorithm)
        found[f"`{name}`"] = (preset.to_flat(), RunConfig(*base))
    return _differences("preset", found)


def _differences(title: str, found: dict[str, tuple[dict, RunConfig]]) -> str:
    lines = [f"| {title} | flags |", "| --- | --- |"]
    for name, (flat, base) in found.items():
        usual = base.to_flat()
        flags = [_flag(key, value) for key, value in flat.items() if value != usual[key]]
        lines.append(f"| {name} | {' '.join(f'`{flag}`' for flag in flags) or '–'} |")
    return "\n".join(lines)


def _flag(name: str, value) -> str:
    flag = f"--{name.replace('_', '-')}"
    if value is True:
        return flag
    if name == "env_param":
        return " ".join(f"{flag} {text}" for text in value)
    return f"{flag} {_shown(value)}"


def _shown(value) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    return str(value)


def _values(kind) -> str:
    """A type in words."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    words = {int: "whole number", float: "number", str: "text", bool: "switch"}
    words |= {int | None: "whole number, or none", float | None: "number, or none"}
    words |= {tuple[int, ...]: "whole numbers", tuple[str, ...]: "texts"}
    return words[kind]


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("`" * 2, "`")
