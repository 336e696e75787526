"""A capture in a process of its own, as a person or a run starts it, and what it says."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dhan_pipeline.settings import Settings

PROGRAM = Path(sys.executable).with_name("dhan-pipeline")


async def until(condition: Callable[[], object], within_s: float = 30.0) -> None:
    """Return once the condition holds; fail when it does not in time."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Child:
    """A capture in a process of its own, and what it has said so far."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self.log = ""
        self._readers = asyncio.gather(self._read_events(), self._read_log())

    @property
    def stored(self) -> int:
        """Ticks that it says it has stored."""
        return max((event["ticks"] for event in self.events if event["event"] == "status"), default=0)

    @property
    def last_status(self) -> dict[str, Any]:
        """Its last status line; empty before the first."""
        return next((event for event in reversed(self.events) if event["event"] == "status"), {})

    async def ended(self) -> int:
        """Its exit code, when it has ended."""
        async with asyncio.timeout(30):
            code = await self.process.wait()
            await self._readers
        return code

    async def _read_events(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.events.append(json.loads(line))

    async def _read_log(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log += line.decode()


def environment(settings: Settings, feed_url: str) -> dict[str, str]:
    """What the capture is told, and nothing of the person who runs the tests."""
    return {
        **{name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")},
        "DATA_SOURCE": settings.data_source,
        "DATA_DIR": str(settings.data_dir),
        "DATABASE_URL": settings.database_url or "",
        "DHAN_TOKEN_FILE": str(settings.dhan_token_file),
        "DHAN_FEED_URL": feed_url,
        "KITE_TOKEN_FILE": str(settings.kite_token_file),
        "KITE_FEED_URL": feed_url,
        "FEED_SILENCE_S": str(settings.feed_silence_s),
        "SESSIONS": "always",
    }


@asynccontextmanager
async def capture(settings: Settings, feed_url: str, **variables: str) -> AsyncIterator[Child]:
    """A child process, with more variables in its environment if need be; killed where the test did not end it."""
    process = await asyncio.create_subprocess_exec(
        *(PROGRAM, "ingest", "--supervised"),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=environment(settings, feed_url) | variables,
        cwd=settings.data_dir.parent,
    )
    child = Child(process)
    try:
        yield child
    finally:
        if process.returncode is None:
            process.kill()
        await child.ended()
        if process.stdin is not None:
            process.stdin.close()


async def settled(child: Child) -> None:
    """Wait until nothing but heartbeats comes any more and everything is stored."""

    def quiet() -> bool:
        lines = [event for event in child.events if event["event"] == "status"][-2:]
        return len({line["packets"] - line["control"] for line in lines}) == 1 and lines[-1]["backlog_seconds"] == 0

    seen = len(child.events)
    await until(lambda: len(child.events) > seen + 1 and quiet())
