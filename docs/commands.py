"""Writes what `--help` says of each command into the page on commands, when the pages are built (see mkdocs.yml)."""

from collections.abc import Iterator
from typing import Any

import typer
from typer.main import get_command

from dhan_pipeline.cli.app import app


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs with the text of each page."""
    if page.file.src_uri != "commands.md":
        return markdown
    return "\n\n".join([markdown.rstrip(), *_sections(get_command(app), ())])


def _sections(command: Any, path: tuple[str, ...]) -> Iterator[str]:
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from _sections(inner, (*path, name))
        return
    yield f"## {' '.join(path)}"
    yield command.help
    records = [parameter.get_help_record(typer.Context(command)) for parameter in command.params]
    rows = [f"| `{record[0]}` | {record[1]} |" for record in records if record]
    if rows:
        yield "\n".join(["| option | meaning |", "|---|---|", *rows])
