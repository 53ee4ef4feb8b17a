"""Parts of the site besides the pages in docs/. All of it is made when the site is built.

MkDocs calls the functions whose names begin with ``on_``; only they need the ``docs`` extra.
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
    resolve,
)

ROOT = Path(__file__).parents[1]
OUTSIDE = (
    "CHANGELOG.md",
    "benchmarks/README.md",
    "benchmarks/results/*.json",
    "benchmarks/results/*.png",
    "notebooks/*.ipynb",
)
"""Files outside docs/ that are on the site at the same place."""

SETTINGS = {"program": (PGConfig, PPOConfig), "numbers": (PGHypers, PPOHypers), "run": (RunConfig,)}
"""The classes whose fields each table of settings lists."""


def on_files(files, config):
    """Add the files outside docs/. Notebooks become Markdown pages with their outputs."""
    from mkdocs.structure.files import File

    for path in (path for pattern in OUTSIDE for path in sorted(ROOT.glob(pattern))):
        uri = path.relative_to(ROOT).as_posix()
        if path.suffix == ".ipynb":
            page, images = _notebook(path)
            files.append(File.generated(config, _site_uri(uri), content=page))
            for name, content in images.items():
                files.append(File.generated(config, f"notebooks/{name}", content=content))
        else:
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Fill in the tables of a page, and correct its links for the site."""
    # GitHub needs the bar in code in a table escaped; Python-Markdown must not have it escaped.
    markdown = re.sub(r"`[^`\n]+`", lambda match: match[0].replace(r"\|", "|"), markdown)
    return site_links(filled(markdown), page.file.src_uri)


def on_page_content(content, page, config, files):
    """Turn formulas into MathML, which browsers show without a script."""
    from latex2mathml.converter import convert

    def formula(match):
        display = "block" if match["tag"] == "div" else "inline"
        return convert(html.unescape(match["formula"]), display=display)

    pattern = r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<formula>.*?)\\[)\]]</(?P=tag)>'
    return re.sub(pattern, formula, content, flags=re.DOTALL)


def filled(markdown: str) -> str:
    """A page in which each ``<!-- make: … -->`` is replaced by what it names."""
    makers = {
        "help": help_text,
        "settings": settings_table,
        "recipes": lambda _: recipes_table(),
        "presets": lambda _: presets_table(),
    }

    def made(match):
        what, _, name = match[1].partition(" ")
        return makers[what](name)

    return re.sub(r"<!-- make: (.*?) -->", made, markdown)


def site_links(markdown: str, uri: str) -> str:
    """A page whose links to files outside docs/ lead to these files on the site.

    A link to a file that is only in the repository becomes plain text.
    """
    is_outside = any(Path(uri).match(pattern) for pattern in (*OUTSIDE, "notebooks/*.md"))
    folder = (Path() if is_outside else Path("docs")).joinpath(uri).parent

    def moved(match):
        path = os.path.normpath(folder / match["target"])
        if path.startswith("docs/"):
            path = path.removeprefix("docs/")
        elif not any(Path(path).match(pattern) for pattern in OUTSIDE):
            return match["words"] if (ROOT / path).exists() else match[0]
        target = os.path.relpath(_site_uri(path), Path(uri).parent)
        return f"[{match['words']}]({target}{match['anchor'] or ''})"

    link = r"\[(?P<words>[^\[\]]*)\]\((?P<target>(?!\w+:)[^)#\s]+)(?P<anchor>#[^)]*)?\)"
    return re.sub(link, moved, markdown)


def help_text(command: str) -> str:
    """The output of ``ape-jax COMMAND --help``, as a note to unfold."""
    text = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS="88"),
        contextlib.redirect_stdout(text),
        contextlib.suppress(SystemExit),
    ):
        cli.main([command, "--help"])
    shown = textwrap.indent(f"```text\n{text.getvalue().strip()}\n```", "    ")
    return f'??? note "ape-jax {command} --help"\n\n{shown}\n'


def settings_table(part: str) -> str:
    """A table of the settings in one part of ``SETTINGS``."""
    defaults = [resolve({"algorithm": algorithm}).to_flat() for algorithm in ("pg", "ppo")]
    names = dict.fromkeys(
        field.name
        for kind in SETTINGS[part]
        for field in dataclasses.fields(kind)
        if field.name in ALL_SETTINGS
    )
    lines = ["| setting | values | pg | ppo | meaning |", "| --- | --- | --- | --- | --- |"]
    for name in names:
        usual = (f"`{_shown(flat[name])}`" if name in flat else "–" for flat in defaults)
        meaning = HELP[name].replace("|", r"\|").replace("``", "`")
        cells = (f"`{name}`", _values(ALL_SETTINGS[name]), *usual, meaning)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def recipes_table() -> str:
    """The flags by which each recipe differs from the default recipe of its algorithm."""
    lines = ["| algorithm | head | min_return | flags |", "| --- | --- | --- | --- |"]
    for algorithm, heads in (
        ("pg", ("tabular", "mlp")),
        ("ppo", ("tabular", "mlp", "conv", "gaussian")),
    ):
        usual = resolve({"algorithm": algorithm}).to_flat()
        for head in heads:
            for min_return in (None, -12.0):
                choice = {"algorithm": algorithm, "head": head, "min_return": min_return}
                found = resolve(choice).to_flat()
                changed = {name: value for name, value in found.items() if value != usual[name]}
                flags = _flags({n: v for n, v in changed.items() if n not in choice})
                given = "given" if min_return is not None else "–"
                lines.append(f"| {algorithm} | {head} | {given} | {flags} |")
    return "\n".join(lines)


def presets_table() -> str:
    """The flags that each preset stands for."""
    rows = (presets.RECIPES | presets.PRESETS).items()
    lines = [f"| `{name}` | {_flags(layer)} |" for name, layer in rows]
    return "\n".join(["| preset | flags |", "| --- | --- |", *lines])


def _notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its images by name."""
    from nbconvert import MarkdownExporter

    page, resources = MarkdownExporter().from_filename(
        str(path), resources={"unique_key": path.stem}
    )
    return page, resources.get("outputs", {})


def _site_uri(path: str) -> str:
    return re.sub(r"^(notebooks/.*)\.ipynb$", r"\1.md", path)


def _flags(settings) -> str:
    """Settings as flags of ``ape-jax train``."""
    flags = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        elif name == "env_param":
            flags += [f"{flag} {text}" for text in value]
        else:
            flags.append(f"{flag} {_shown(value)}")
    return " ".join(f"`{flag}`" for flag in flags) or "–"


def _shown(value) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)


def _values(kind) -> str:
    """The values of a setting, in words."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    return {
        int: "whole number",
        float: "number",
        str: "text",
        bool: "yes or no",
        int | None: "whole number, or none",
        float | None: "number, or none",
        tuple[int, ...]: "whole numbers",
        tuple[str, ...]: "texts",
    }[kind]
