"""A folder as a person has it who follows a document, and a shell in it."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dhan_pipeline.local.services import free_port
from dhan_pipeline.store import embedded
from dhan_pipeline_tests.documents.snippets import REPOSITORY, shell_lines

#: What a checkout has. Scripts in `deploy` write beside themselves, so it is copied.
_LINKED = (
    "Makefile",
    "docs",
    "dhan_pipeline",
    "dhan_pipeline_tests",
    "pyproject.toml",
    "sql",
    "workspace.yaml",
    ".venv",
)
_COPIED = (".env.example", "subscriptions.example.yaml", "deploy")

_WITHIN_S = 60.0


def make_checkout(folder: Path) -> None:
    """Fill a folder with what a fresh checkout has."""
    for name in _LINKED:
        (folder / name).symlink_to(REPOSITORY / name)
    for name in _COPIED:
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)


def postgres_programs() -> Path:
    """Where psql, pg_dump and pg_restore of the embedded server are."""
    program = embedded.client_program("psql")
    assert program is not None
    return program.parent


def copy_database(source_url: str, target_url: str) -> None:
    """Everything of one database into another, which is empty."""
    bin_dir = postgres_programs()
    dumped = subprocess.run([bin_dir / "pg_dump", "--format", "custom", source_url], stdout=subprocess.PIPE, check=True)
    restored = [bin_dir / "pg_restore", "--no-owner", "--dbname", target_url]
    subprocess.run(restored, input=dumped.stdout, check=True)


@dataclass(frozen=True)
class Lasting:
    """A command that runs until it is asked to stop."""

    command: str
    """Found in its line."""
    ready: str
    """A regular expression for what it says once it works."""
    stays: bool = False
    """Whether what follows in the document needs it."""


@dataclass
class Shell:
    """Runs the blocks of one document, in order."""

    folder: Path
    environment: Mapping[str, str]
    lasting: Sequence[Lasting]
    replaced: Mapping[str, str] = field(default_factory=dict)
    """What a person would put in place of what stands in the document."""
    _ports: dict[str, int] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> "Shell":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, block: str) -> None:
        """Run a block. What lasts is waited for, and ended after the block."""
        begin = ""
        with ExitStack() as ends:
            for line in shell_lines(block):
                if lasts := next((each for each in self.lasting if each.command in line), None):
                    stack = self._stack if lasts.stays else ends
                    stack.enter_context(self._started(f"{begin}exec {_plain(line)}", lasts))
                    begin = ""
                else:
                    begin += line
            if begin:
                self._finished(begin)

    def text(self, text: str) -> str:
        """The text with free ports, and what is replaced, in place of what stands there."""
        for word, instead in self.replaced.items():
            text = text.replace(word, instead)
        return re.sub(
            r"(127\.0\.0\.1:|METRICS_PORT=)(\d{4})\b", lambda found: found[1] + str(self._port(found[2])), text
        )

    def _port(self, named: str) -> int:
        return self._ports.setdefault(named, free_port())

    def _finished(self, script: str) -> None:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.text(script)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr

    @contextmanager
    def _started(self, script: str, lasts: Lasting) -> Iterator[None]:
        said = self.folder / "said"
        with said.open("w+") as file:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", self.text(script)],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        try:
            deadline = time.monotonic() + _WITHIN_S
            while not re.search(lasts.ready, said.read_text()):
                assert process.poll() is None, f"{script}\n{said.read_text()}"
                assert time.monotonic() < deadline, f"{script}\n{said.read_text()}"
                time.sleep(0.05)
            yield
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            try:
                code = process.wait(_WITHIN_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                code = process.wait()
        assert code == 0, f"{script}\n{said.read_text()}"


def _plain(line: str) -> str:
    """The command without variables before it, which `exec` does not take."""
    return f"env {line}" if re.match(r"\w+=", line) else line
