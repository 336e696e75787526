"""What a capture or a worker shows to Prometheus: numbers that it has anyway, read when somebody asks for them.

Nothing is counted here, and nothing happens for a packet or a block. A scrape runs in a thread of its own: it reads
plain numbers that other threads add up, and the latest status line, which is replaced each second and never changed.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Literal

import numpy as np
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from dhan_pipeline.clock import Clock
from dhan_pipeline.enrich import FUTURE_TRADE_TIME, IMPOSSIBLE_PRICE, UNKNOWN_INSTRUMENT
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.ingest.counts import Counts
from dhan_pipeline.ingest.latency import BINS_PER_DECADE, LOWEST_MS, LatencyHistogram
from dhan_pipeline.instruments import ExchangeSegment, segments_of
from dhan_pipeline.sessions import IST, packets_due, session_bounds
from dhan_pipeline.settings import Settings

log = logging.getLogger(__name__)

#: Upper limits of the latency's buckets, in seconds. The histogram's own bins end within 0.3 % of these.
LATENCY_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)

#: Accepted packets by kind, as `Counts.kinds` has them. All are shown from the start, so that no first one is missed.
KINDS = (
    "ticker",
    "quote",
    "full",
    "open_interest",
    "previous_close",
    "heartbeat",
    "market_status",
    "disconnect",
    "text",
)

OTHER_REASON = "other"

#: The label of each reason for a rejection. Reasons are sentences with numbers in them; labels have to be few.
_REASONS = {
    re.escape(UNKNOWN_INSTRUMENT): "unknown_instrument",
    re.escape(IMPOSSIBLE_PRICE): "impossible_price",
    re.escape(FUTURE_TRADE_TIME): "future_trade_time",
    "unknown code .*": "unknown_code",
    "index packet .*": "index_packet",
    "depth packet .*": "legacy_depth_packet",
    "torn .* packet: .*": "torn_packet",
    ".* packet of .* needed": "short_packet",
    ".* too few for a header": "no_header",
    "empty message": "empty_message",
}
REASONS = (*_REASONS.values(), OTHER_REASON)

#: Where sessions never end, a token that is good for this long is good enough.
_ALWAYS_AHEAD = timedelta(hours=2)

#: No holidays last so long.
_LONGEST_PAUSE_DAYS = 15


def reason_label(reason: str) -> str:
    """The label of a rejection's reason: one of `REASONS`."""
    return next((label for pattern, label in _REASONS.items() if re.fullmatch(pattern, reason)), OTHER_REASON)


def _seconds(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()


Convert = Callable[[Any], float]

#: Counters of `Counts`, by attribute.
_OF_COUNTS = {
    "blocks": ("dhan_stored_blocks", "Blocks whose packets are committed; a lane's part of a block counts as one."),
    "batches": ("dhan_stored_batches", "Transactions that stored something."),
    "packets": ("dhan_packets", "Packets of committed blocks: ticks + state + control + rejected."),
    "ticks": ("dhan_ticks", "Packets that became rows of `ticks`."),
    "state": ("dhan_state_packets", "Packets that say what later ticks carry: open interest, previous close."),
    "control": ("dhan_control_packets", "Heartbeats, market status, disconnects, text."),
}

#: Counters of the status line, by key.
_COUNTERS_OF_STATUS = {
    "messages": ("dhan_messages", "Messages that came from the feed."),
    "bytes": ("dhan_received_bytes", "Bytes of them, notes of the capture included."),
    "reconnects": ("dhan_reconnects", "Connections that were made again."),
    "gaps": ("dhan_gaps", "Gaps that were noted, in session or not."),
    "buried": ("dhan_buried_messages", "Messages that this worker put into the dead-letter queue."),
}

#: Gauges of the status line, by key. What is None or not there is not shown.
_GAUGES_OF_STATUS: dict[str, tuple[str, str, Convert]] = {
    "at": (
        "dhan_status_timestamp_seconds",
        "When the process last looked at itself: each second.",
        _seconds,
    ),
    "connections": ("dhan_connections", "Connections to the feed that there should be.", float),
    "connections_up": ("dhan_connections_up", "Connections to the feed that there are.", float),
    "last_packet_at": ("dhan_last_message_timestamp_seconds", "When the feed's last message came.", _seconds),
    "backlog_blocks": ("dhan_backlog_blocks", "Durable blocks that wait to be stored, or to be handed over.", float),
    "backlog_seconds": ("dhan_backlog_seconds", "How long the oldest message has waited that is not stored.", float),
    "gap_open_s": ("dhan_gap_open_seconds", "How long the longest gap that lasts has been, in session.", float),
    "gap_recent_s": (
        "dhan_gap_recent_seconds",
        "The longest gap that ended within 5 minutes, in session; not one of a stop that was asked for.",
        float,
    ),
    "silent_count": ("dhan_silent_instruments", "Lively instruments that fell silent.", float),
    "trade_clock": (
        "dhan_trade_clock_ok",
        "1 while trade times follow the clock by which they are read, 0 where not.",
        lambda verdict: float(verdict == "ok"),
    ),
    "token_expires_at": ("dhan_token_expires_timestamp_seconds", "When the access token's time is over.", _seconds),
    "disk_free_gb": ("dhan_disk_free_bytes", "Free space of the journal's disk.", lambda free_gb: 1e9 * free_gb),
    "queue_depth": ("dhan_queue_messages", "Messages that wait in RabbitMQ, in all lanes.", float),
    "dead_letters": ("dhan_dead_letters", "Messages that no worker could store.", float),
    "workers": ("dhan_workers", "Workers that are there.", float),
    "lanes": ("dhan_lanes_held", "Lanes that this worker stores.", len),
}


class MetricsError(PipelineError):
    """The metrics cannot be shown where the settings say."""


class Metrics:
    """A collector of Prometheus over one process: its counts, its latest status line, and the exchanges' sessions."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        role: Literal["capture", "worker"],
        counts: Counts | None = None,
        subscribed: Collection[int] = (),
    ) -> None:
        """`counts`: what was committed. `subscribed`: a capture's instrument tokens.

        Counts of a capture whose blocks are stored by workers are not shown: the workers show theirs, and sums would
        count all twice.
        """
        self.status: Mapping[str, Any] = {}
        """The latest status line. Put another one in its place; never change it."""
        self._settings = settings
        self._clock = clock
        self._counts = None if role == "capture" and settings.transport == "rabbitmq" else counts
        self._process = {
            "role": role,
            "capture": str(settings.capture_number) if role == "capture" else "",
            "source": settings.data_source,
            "transport": settings.transport,
        }
        self.subscribe(subscribed)

    def subscribe(self, instrument_tokens: Collection[int]) -> None:
        """The capture is subscribed to these now."""
        # In the event loop, where 25,000 of them one by one would hold up what is received for tens of milliseconds.
        tokens = np.fromiter(instrument_tokens, np.int64, len(instrument_tokens))
        segments, counts = np.unique(segments_of(tokens), return_counts=True)
        self._instruments = dict(zip(map(ExchangeSegment, segments.tolist()), counts.tolist(), strict=True))

    def collect(self) -> Iterator[Metric]:
        """Everything as it is now. For the thread of a scrape; cheap."""
        yield InfoMetricFamily("dhan_process", "What this process is.", self._process)
        if self._counts is not None:
            yield from _of_counts(self._counts)
        yield from _of_status(self.status)
        if self._instruments:
            yield from self._of_sessions()

    def _of_sessions(self) -> Iterator[Metric]:
        always = self._settings.sessions == "always"
        now_ns = self._clock.now_ns()
        subscribed = GaugeMetricFamily("dhan_subscribed_instruments", "Instruments subscribed.", labels=["segment"])
        is_open = GaugeMetricFamily(
            "dhan_session_open", "1 while the segment trades continuously, so that packets are due.", labels=["segment"]
        )
        for segment, count in self._instruments.items():
            subscribed.add_metric([segment.name], count)
            is_open.add_metric([segment.name], always or packets_due(now_ns, (segment,)))
        yield subscribed
        yield is_open
        closes, opens = self._now_and_next()
        if closes is not None:
            yield GaugeMetricFamily(
                "dhan_session_close_timestamp_seconds", "The last close of today, from the first opening on.", closes
            )
        if opens is not None:
            yield GaugeMetricFamily("dhan_next_session_timestamp_seconds", "When the next day's sessions begin.", opens)

    def _now_and_next(self) -> tuple[float | None, float | None]:
        """When the day that is on closes, and when the next one opens: seconds since the Unix epoch."""
        now = self._clock.now().astimezone(IST)
        if self._settings.sessions == "always":
            return (now + _ALWAYS_AHEAD).timestamp(), now.timestamp()
        closes = None
        for days in range(_LONGEST_PAUSE_DAYS):
            bounds = session_bounds((now + timedelta(days=days)).date(), tuple(self._instruments))
            if bounds is not None and now < bounds[0]:
                return closes, bounds[0].timestamp()
            if bounds is not None and now < bounds[1]:
                closes = bounds[1].timestamp()
        return closes, None


def _of_counts(counts: Counts) -> Iterator[Metric]:
    for attribute, (name, meaning) in _OF_COUNTS.items():
        yield CounterMetricFamily(name, meaning, getattr(counts, attribute))
    kinds = dict.fromkeys(KINDS, 0) | dict(counts.kinds)
    yield _labelled("dhan_accepted_packets", "Packets that were read, by kind.", "kind", kinds)
    reasons = Counter(dict.fromkeys(REASONS, 0))
    for reason, count in dict(counts.reasons).items():
        reasons[reason_label(reason)] += count
    yield _labelled("dhan_rejected_packets", "Packets that are in `rejected_packets`, by reason.", "reason", reasons)
    yield _latency(counts.latency)


def _labelled(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, meaning, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


#: Of each bucket, the bin after its last; of each bin, the middle in seconds.
_ENDS = [round(np.log10(1000 * limit / LOWEST_MS) * BINS_PER_DECADE) for limit in LATENCY_BUCKETS_S]
_MIDDLES_S = LOWEST_MS / 1000 * 10 ** ((np.arange(len(LatencyHistogram().counts)) + 0.5) / BINS_PER_DECADE)


def _latency(histogram: LatencyHistogram) -> Metric:
    counts = histogram.counts.copy()
    cumulative = counts.cumsum()
    buckets = [(str(limit), float(cumulative[end - 1])) for limit, end in zip(LATENCY_BUCKETS_S, _ENDS, strict=True)]
    return HistogramMetricFamily(
        "dhan_latency_seconds",
        "From the receipt of a message to its commit.",
        [*buckets, ("+Inf", float(cumulative[-1]))],
        float(counts @ _MIDDLES_S),
    )


def _of_status(status: Mapping[str, Any]) -> Iterator[Metric]:
    for key, (name, meaning) in _COUNTERS_OF_STATUS.items():
        if status.get(key) is not None:
            yield CounterMetricFamily(name, meaning, status[key])
    for key, (name, meaning, convert) in _GAUGES_OF_STATUS.items():
        if status.get(key) is not None:
            yield GaugeMetricFamily(name, meaning, convert(status[key]))


@contextmanager
def serving(settings: Settings, metrics: Metrics) -> Iterator[str | None]:
    """Show the metrics over HTTP, and those of the process, as long as the context lasts: gives their address.

    Nothing at all, and None, where `metrics_port` is not set. Raises MetricsError where the address cannot be had.
    """
    if settings.metrics_port is None:
        yield None
        return
    registry = CollectorRegistry()
    registry.register(metrics)
    ProcessCollector(registry=registry)
    host, port = settings.metrics_host, settings.metrics_port
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise MetricsError(
            f"The metrics cannot be shown on {host}:{port} ({error.strerror}): choose another METRICS_PORT or"
            " METRICS_HOST, or leave METRICS_PORT out."
        ) from error
    address = f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/metrics"
    log.info("The metrics are on %s.", address)
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
