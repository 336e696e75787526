"""The code blocks of the documents, the lines of those for a shell, and the command lines of ours anywhere in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import typer
from typer.main import get_command

from dhan_pipeline.cli.app import app

REPOSITORY = Path(__file__).parent.parent.parent
DOCUMENTS = [
    *(REPOSITORY / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((REPOSITORY / ".github").rglob("*.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]

_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """A code block."""

    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def name_of(document: Path) -> str:
    """Its path from the repository, below docs/ from there: `README.md`, `operations.md`."""
    return str(document.relative_to(REPOSITORY)).removeprefix("docs/")


def snippets(*languages: str) -> list[Snippet]:
    """All blocks of these languages, in order."""
    return [
        Snippet(name_of(path), text.count("\n", 0, found.start()) + 2, found[2], dedent(found[3]))
        for path in DOCUMENTS
        for text in [path.read_text(encoding="utf-8")]
        for found in _BLOCK.finditer(text)
        if found[2] in languages
    ]


def shell_lines(text: str) -> Iterator[str]:
    """A block's commands, one at a time: continued lines are one, and so is one with what it reads from `<<`."""
    lines = iter(text.splitlines(keepends=True))
    for line in lines:
        while line.endswith("\\\n"):
            line += next(lines)
        if ends := re.search(r"<<'?(\w+)'?", line):
            while not line.endswith(f"\n{ends[1]}\n"):
                line += next(lines)
        if line.strip() and not line.startswith("#"):
            yield line


def command_lines(text: str) -> Iterator[list[str]]:
    """The arguments of each `dhan-pipeline …` in some text: up to what ends a command in a shell, or a code span."""
    for found in re.finditer(r"dhan-pipeline (?=[a-z])([^`\n]*)", text.replace("\\\n", "")):
        yield _words(found[1])


def mentions(text: str) -> Iterator[list[str]]:
    """The arguments of each code span that begins with a command's name and goes on."""
    for found in re.finditer(r"`([a-z-]+ [^`\n]+)`", text):
        words = _words(found[1])
        if words and words[0] in get_command(app).commands:  # type: ignore[attr-defined]
            yield words


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = []
    try:
        for word in lexer:
            if set(word) <= set("();<>|&"):
                break
            words.append(word)
    except ValueError:  # a quotation mark that is the sentence's
        pass
    return words


def parse(words: list[str], *, mention: bool = False) -> None:
    """Parse arguments as the program does; raises what it raises where there is no such command or option.

    An option that is only mentioned (`simulate --fault`) may lack its value.
    """
    command: Any = get_command(app)
    words = list(words)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    options = {name: option for option in command.params for name in option.opts}
    if mention and words and words[-1] in options and not options[words[-1]].is_flag:
        words.append("…")
    _, rest, _ = command.make_parser(typer.Context(command)).parse_args(words)
    assert not rest, rest
