"""Is everything fit for the session? Each probe looks at one thing, in a thread of its own: none holds the rest up.

Belongs here: which probes there are, and having them look. Does not: what they look at.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

from dhan_pipeline.clock import Clock
from dhan_pipeline.diagnosis import account, machine, running, stored
from dhan_pipeline.diagnosis.findings import Finding, bad
from dhan_pipeline.errors import in_words
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.threads import in_thread

#: How long all probes together may take; one that has not answered by then is a red line.
PATIENCE_S = 25.0


@dataclass(frozen=True, slots=True)
class Probe:
    """Looks at one thing, and finds what its names say."""

    names: tuple[str, ...]
    look: Callable[[Settings, Clock], Sequence[Finding]]
    of_source: bool = True
    """Whether each broker has one of its own."""


PROBES = (
    Probe(("calendar",), machine.calendar, of_source=False),
    Probe(("clock",), account.clock_in_sync),
    Probe(("feed",), account.feed_reachable),
    Probe(("token", "data plan"), account.token_and_plan),
    Probe(("database", "migrations"), stored.database, of_source=False),
    Probe(("rabbitmq",), running.rabbitmq, of_source=False),
    Probe(("instruments",), stored.instruments),
    Probe(("subscriptions",), stored.subscriptions),
    Probe(("capture",), running.capture),
    Probe(("disk",), machine.disk, of_source=False),
    Probe(("open files",), machine.open_files, of_source=False),
)


def examine(settings: Settings, clock: Clock, patience_s: float = PATIENCE_S) -> list[Finding]:
    """The findings of all probes, in their order; those of each broker one after the other. Raises nothing."""
    asked: list[tuple[Probe, Source | None, Future[Sequence[Finding]]]] = []
    for probe in PROBES:
        for source in settings.sources if probe.of_source else (None,):
            look = partial(probe.look, settings if source is None else settings.of(source), clock)
            asked.append((probe, source, in_thread(look, probe.names[0])))
    deadline = time.monotonic() + patience_s
    several = len(settings.sources) > 1
    findings: list[Finding] = []
    for probe, source, future in asked:
        found = _outcome(probe, future, max(deadline - time.monotonic(), 0.0), patience_s)
        findings += [replace(finding, source=source) for finding in found] if several else found
    return findings


def _outcome(
    probe: Probe, future: "Future[Sequence[Finding]]", within_s: float, patience_s: float
) -> Sequence[Finding]:
    try:
        return future.result(within_s)
    except TimeoutError as error:
        if not future.done():
            fix = "Something it asks does not answer; look at the network and at the lines beside it."
            return [bad(name, f"No answer within {patience_s:.0f} s.", fix) for name in probe.names]
        words = in_words(error)
    except Exception as error:
        words = in_words(error)
    return [bad(name, f"It could not be looked at: {words}", "Mend that, and ask again.") for name in probe.names]
