"""The program as a person runs it: in a process of its own, or, where the process does not matter, in this one."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dhan_pipeline.cli.app import run as run_program
from dhan_pipeline.settings import Settings

Done = subprocess.CompletedProcess[str]


def environment(**settings: object) -> dict[str, str]:
    """Ours, with these settings and no others; the source is Dhan, where they do not say."""
    names = {name.upper() for name in Settings.model_fields}
    kept = {name: value for name, value in os.environ.items() if name not in names}
    given = {name.upper(): str(value) for name, value in settings.items()}
    return kept | {"COLUMNS": "100", "DATA_SOURCE": "dhan"} | given


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dhan_pipeline.cli", *arguments]


def run(*arguments: str, cwd: Path, stdin: str = "", **settings: object) -> Done:
    return subprocess.run(
        command(*arguments), cwd=cwd, input=stdin, env=environment(**settings), capture_output=True, text=True
    )


@contextmanager
def running(*arguments: str, cwd: Path, **settings: object) -> Iterator[subprocess.Popen[str]]:
    """The program in the background; killed at the end if it still runs."""
    process = subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=environment(**settings),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


class Here:
    """The program in this process: a start takes no time."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder = folder
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str, **settings: object) -> Done:
        with self._monkeypatch.context() as patch:
            patch.chdir(self._folder)
            for name in Settings.model_fields:
                patch.delenv(name.upper(), raising=False)
            for name, value in {"columns": 100, "data_source": "dhan", **settings}.items():
                patch.setenv(name.upper(), str(value))
            patch.setattr(sys, "argv", ["dhan-pipeline", *arguments])
            self._capsys.readouterr()
            code = run_program()
        out, err = self._capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)


def sentence(done: Done) -> str:
    """The one sentence that a failed command has said, and nothing else; with --json, in JSON as well."""
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(r"dhan-pipeline: \S.*[^.?][.?]", line), line
    said = line.removeprefix("dhan-pipeline: ")
    if "--json" in done.args:
        assert json.loads(done.stdout) == {"problem": said}
    else:
        assert done.stdout == ""
    return said


def last_sentence(done: Done) -> str:
    """The one sentence that a failed command has said after what it reported before."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(r"dhan-pipeline: \S.*[^.?][.?]", last), last
    return last.removeprefix("dhan-pipeline: ")


def wrong_usage(done: Done) -> str:
    """What a person is told who gave wrong arguments."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr
