"""What a journal holds of a time, for the exchange to send again, and how far that has come."""

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import chain, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dhan_pipeline.errors import PipelineError

if TYPE_CHECKING:
    from dhan_pipeline.feeds.simulator.kite_replay import KiteReplay
    from dhan_pipeline.feeds.simulator.recording import Messages
    from dhan_pipeline.feeds.simulator.replay import DhanReplay
    from dhan_pipeline.sources import Source

#: How often it is said how far the recording has come, in seconds.
_SAY_EVERY_S = 5.0

#: No block lasts longer than this: one that began earlier has no message of the time that is asked for.
_LONGEST_BLOCK_NS = 60_000_000_000

#: The number of a block is a time in milliseconds of so many bits.
_LATEST_NS = (1 << 42) * 1_000_000


@dataclass(frozen=True, slots=True)
class Recording:
    """What was recorded in a time: ns since the Unix epoch, UTC."""

    messages: "Iterator[Messages]"
    first_ns: int
    last_ns: int


def parse_interval(day: str | None, since: str | None, until: str | None) -> tuple[int, int]:
    """Start and end of a time (end excluded), in ns since the Unix epoch, UTC. Raises typer.BadParameter."""
    from dhan_pipeline.sessions import IST

    def ns(at: datetime, option: str) -> int:
        try:
            found = int((at if at.tzinfo else at.replace(tzinfo=IST)).astimezone(UTC).timestamp()) * 1_000_000_000
        except OverflowError:
            found = -1
        if not 0 <= found < _LATEST_NS:
            raise typer.BadParameter("nothing was recorded before 1970 or after 2109", param_hint=option)
        return found + at.microsecond * 1000

    def instant(text: str | None, option: str, default_ns: int) -> int:
        if text is None:
            return default_ns
        try:
            return ns(datetime.fromisoformat(text), option)
        except ValueError:
            raise typer.BadParameter(f"{text} is not a time such as 2026-11-20T09:15", param_hint=option) from None

    if day is not None:
        if since is not None or until is not None:
            raise typer.BadParameter("give either --day or --from and --to", param_hint="--day")
        try:
            midnight = datetime.combine(date.fromisoformat(day), datetime.min.time())
        except ValueError:
            raise typer.BadParameter(f"{day} is not a day such as 2026-11-20", param_hint="--day") from None
        start_ns = ns(midnight, "--day")
        return start_ns, start_ns + timedelta(days=1) // timedelta(microseconds=1) * 1000
    start_ns, end_ns = instant(since, "--from", 0), instant(until, "--to", _LATEST_NS)
    if start_ns >= end_ns:
        raise typer.BadParameter("that is not after --from", param_hint="--to")
    return start_ns, end_ns


def read_recording(journal_dir: Path, start_ns: int, end_ns: int, source: "Source" = "dhan") -> Recording:
    """What a source sent from `start_ns` on and before `end_ns`, over all its captures, read while it is asked for.

    Raises PipelineError where there is nothing.
    """
    from dhan_pipeline.feeds.simulator.recording import merge
    from dhan_pipeline.journal.reader import captures, hours
    from dhan_pipeline.sources import source_of_capture

    held = captures(journal_dir)
    if not held:
        raise PipelineError(f"There is no journal in {journal_dir}: it is a folder of captures, such as data/journal.")
    numbers = [number for number in held if source_of_capture(number) == source]
    if not numbers:
        raise PipelineError(f"The journal in {journal_dir} has nothing of {source}: choose another --source.")
    messages = merge([_read_capture(journal_dir, capture, start_ns, end_ns) for capture in numbers])
    first = next(messages, None)
    if first is None:
        keys = sorted(key for capture in numbers for key in hours(journal_dir, capture))
        has = f"its hours are {keys[0]} to {keys[-1]}" if keys else "it is empty"
        raise PipelineError(f"The journal in {journal_dir} has no packets of that time: {has}.")
    last_ns = max(_last_received_ns(journal_dir, capture, start_ns, end_ns) for capture in numbers)
    first_ns = int(first.received_ns[0])
    return Recording(chain([first], messages), first_ns, max(first_ns, last_ns))


async def follow(replay: "DhanReplay | KiteReplay", recording: Recording, stop: asyncio.Event, *, once: bool) -> None:
    """Say how far the recording has come, and what it came to. Where it cannot be read on, and with `once`, stop."""
    _say(f"The recording is from {_at(recording.first_ns)} to {_at(recording.last_ns)}.")
    if not replay.begun.is_set():
        _say("It begins when a client has subscribed.")
        await replay.begun.wait()
        _say("It has begun.")
    loop = asyncio.get_running_loop()
    ended = asyncio.ensure_future(replay.ended.wait())
    played, then = replay.played, loop.time()
    while not (await asyncio.wait({ended}, timeout=_SAY_EVERY_S))[0]:
        rate = (replay.played - played) / (loop.time() - then)
        played, then = replay.played, loop.time()
        if replay.at_ns is not None:
            lasts = max(recording.last_ns - recording.first_ns, 1)
            share = min((replay.at_ns - recording.first_ns) / lasts, 1.0)
            _say(
                f"{_at(replay.at_ns)}  {share:>4.0%}  {rate:>9,.0f} packets/s  "
                f"{replay.sent.total():>12,} sent to {len(replay.connections)} connections"
            )
    if replay.failure is None:
        for sentence in _summary(replay):
            _say(sentence)
        if not once:
            _say("It goes on listening, with the last packets for whoever subscribes. Ctrl-C ends it.")
    if once or replay.failure is not None:
        stop.set()


def _summary(replay: "DhanReplay | KiteReplay") -> Iterator[str]:
    from dhan_pipeline.feeds.simulator.replay import in_words

    yield f"The recording has ended: {replay.played:,} packets in it, {replay.sent.total():,} sent to clients."
    missing = replay.missing
    if len(missing):
        asked = replay.asked
        which = "any" if len(missing) == asked else f"{len(missing):,}"
        yield f"Nothing was recorded of {which} of the {asked:,} instruments asked for: {in_words(missing)}."


def _read_capture(journal_dir: Path, capture: int, start_ns: int, end_ns: int) -> "Iterator[Messages]":
    """The messages of one capture, without its notes."""
    import numpy as np

    from dhan_pipeline.feeds.simulator.recording import Messages
    from dhan_pipeline.journal.block import first_block_id
    from dhan_pipeline.journal.notes import NOTE_CONNECTION
    from dhan_pipeline.journal.reader import read_stretches

    after = first_block_id(capture, max(start_ns - _LONGEST_BLOCK_NS, 0)) - 1
    found = read_stretches(journal_dir, capture, after if start_ns else None)
    for stretch in takewhile(lambda stretch: stretch.received_ns[0] < end_ns, found):
        received_ns = stretch.received_ns
        wanted = (received_ns >= start_ns) & (received_ns < end_ns) & (stretch.connection != NOTE_CONNECTION)
        start, size = stretch.offsets[:-1], np.diff(stretch.offsets)
        if not wanted.all():
            received_ns, start, size = received_ns[wanted], start[wanted], size[wanted]
        if len(received_ns):
            yield Messages(received_ns, start, size, stretch.text[wanted], stretch.payload)


def _last_received_ns(journal_dir: Path, capture: int, start_ns: int, end_ns: int) -> int:
    """When the last message was received; 0 without any."""
    from dhan_pipeline.journal.reader import hour_summary, hours
    from dhan_pipeline.sessions import HOUR_NS, parse_hour_key

    for hour in reversed(hours(journal_dir, capture)):
        if start_ns - HOUR_NS < parse_hour_key(hour) < end_ns:
            last_ns = hour_summary(journal_dir, capture, hour).last_received_ns
            if last_ns is not None:
                return min(last_ns, end_ns - 1)
    return 0


def _at(at_ns: int) -> str:
    from dhan_pipeline.times import ist, to_second

    return to_second(ist(at_ns))


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
