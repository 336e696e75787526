"""The list of subscriptions changes while a capture runs: over the simulated exchange of either broker."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from dhan_pipeline.chains import Chain
from dhan_pipeline.feeds.by_source import feed_of
from dhan_pipeline.feeds.connection import FeedPolicy
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.feeds.simulator.exchange import Connection
from dhan_pipeline.feeds.simulator.kite import KiteSimulator
from dhan_pipeline.ingest import run as run_module
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.store.engine import connect
from dhan_pipeline.subscriptions import Resolution, Subscription, read_subscriptions, write_subscriptions
from dhan_pipeline.ticks import Mode
from dhan_pipeline.windows import write_resolution
from dhan_pipeline_tests import child
from dhan_pipeline_tests.child import until
from dhan_pipeline_tests.ingest.feed import (
    BOTH_SOURCES,
    SUBSCRIPTIONS_OF,
    add_instruments,
    assert_stored_exactly_once,
    outage,
    prepare_capture,
    query,
    simulator_of,
)
from dhan_pipeline_tests.ingest.running import ingest

QUICK = FeedPolicy(first_delay_s=0.01, longest_delay_s=0.02)

#: How the simulated exchanges write a mode down.
BITS = {Mode.TICKER: 1, Mode.QUOTE: 2, Mode.FULL: 4}


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_LIST_POLL_S", 0.02)
    monkeypatch.setattr(run_module, "_CHAINS_POLL_S", 0.02)


@pytest.fixture
def settings(tmp_path: Path, database_url: str, source: Source) -> Settings:
    settings = Settings(
        _env_file=None,
        data_source=source,
        data_dir=tmp_path / "data",
        database_url=database_url,
        dhan_token_file=tmp_path / "token.json",
        kite_token_file=tmp_path / "token.json",
        sessions="always",
    )
    prepare_capture(settings)
    return settings


def asked_of(connection: Connection, simulator: DhanSimulator | KiteSimulator, listed: list[Subscription]) -> set[int]:
    """Tokens that a connection of the exchange serves; none where one is not in the list, or not in its mode."""
    modes = {each.instrument_token: each.mode for each in listed}
    tokens = [each.instrument_token for each in SUBSCRIPTIONS_OF[simulator.source]]
    served = {tokens[at]: int(connection.modes[at]) for at in np.flatnonzero(connection.modes)}
    as_listed = all(token in modes and bit == BITS[modes[token]] for token, bit in served.items())
    return set(served) if as_listed else set()


def serves(simulator: DhanSimulator | KiteSimulator, listed: list[Subscription]) -> Callable[[], bool]:
    """Whether the exchange sends exactly the list, over all its connections, each instrument over one."""

    def holds() -> bool:
        parts = [asked_of(connection, simulator, listed) for connection in simulator.connections]
        return sum(map(len, parts)) == len(listed) == len(set().union(*parts))

    return holds


def of_feed(settings: Settings, simulator: DhanSimulator | KiteSimulator) -> Settings:
    return settings.model_copy(update={f"{settings.source}_feed_url": simulator.feed_url})


def ticks_of(database_url: str, token: int) -> int:
    [(count,)] = query(database_url, "SELECT count(*) FROM ticks WHERE instrument_token = %s", token)
    assert isinstance(count, int)
    return count


@BOTH_SOURCES
async def test_a_new_list_is_taken_over_without_a_reconnect_and_nothing_is_missed(
    settings: Settings, database_url: str
) -> None:
    every = SUBSCRIPTIONS_OF[settings.source]
    before, new = every[:40], every[40:]
    gone = before[0]
    other = replace(before[7], mode=Mode.TICKER if before[7].mode is not Mode.TICKER else Mode.FULL)
    after = [*before[1:7], other, *before[8:], *new]
    write_subscriptions(settings.subscriptions_path, before)
    with closing(connect(database_url)) as conn, conn, conn.cursor() as cursor:
        tokens = [each.instrument_token for each in new]
        cursor.execute("DELETE FROM instruments WHERE instrument_token = ANY(%s)", (tokens,))
    async with simulator_of(settings, rate=2000) as simulator:
        async with ingest(of_feed(settings, simulator)) as running:
            await until(lambda: ticks_of(database_url, gone.instrument_token))
            [connection] = simulator.connections

            # They are synced while the capture runs, and a row comes of their first packet.
            add_instruments(database_url, tokens)
            write_subscriptions(settings.subscriptions_path, after)
            await until(serves(simulator, after))
            await until(lambda: ticks_of(database_url, new[-1].instrument_token))
            [event] = running.of_kind("subscriptions")
            assert {name: event[name] for name in ("added", "removed", "changed", "subscribed")} == {
                "added": 20,
                "removed": 1,
                "changed": 1,
                "subscribed": 59,
            }
            assert event["message"] == (
                "The subscriptions have changed: +20 -1 instruments, 1 in another mode; 59 in all."
            )
            await until(lambda: running.of_kind("status")[-1]["subscribed"] == 59)

            # Lists that cannot be used change nothing.
            for wrong, words in (
                ("instrument_token,nonsense\n1,2\n", "line 2: not a resolved subscription"),
                ("", "is empty"),
                (None, "There are no resolved subscriptions"),
            ):
                if wrong is None:
                    settings.subscriptions_path.unlink()
                else:
                    settings.subscriptions_path.write_text(wrong)
                await until(lambda words=words: any(words in each["message"] for each in running.of_kind("warning")))  # type: ignore[misc]
            write_subscriptions(settings.subscriptions_path, after)
            assert [each["message"].startswith("The subscriptions stay") for each in running.of_kind("warning")] == (
                [True] * 3
            )
            simulator.rate = 0
            simulator.flush()
            assert simulator.connections == [connection]
            await child.until(lambda: running.of_kind("status")[-1]["backlog_seconds"] == 0.0)
        assert len(running.of_kind("subscriptions")) == 1
        assert serves(simulator, after)() or not simulator.connections
    assert_stored_exactly_once(settings, database_url)
    assert query(database_url, "SELECT count(*) FROM rejected_packets") == [(0,)]
    assert query(database_url, "SELECT cause FROM feed_gaps") == []
    since_then = query(
        database_url,
        "SELECT instrument_token, mode, until IS NULL FROM subscribed_instruments "
        "WHERE since > (SELECT min(since) FROM subscribed_instruments) OR until IS NOT NULL ORDER BY since, mode",
    )
    assert sorted(since_then) == sorted(
        [
            (gone.instrument_token, gone.mode.value, False),
            (other.instrument_token, before[7].mode.value, False),
            (other.instrument_token, other.mode.value, True),
            *((each.instrument_token, each.mode.value, True) for each in new),
        ]
    )
    # What was sent after the change was told is of the new list.
    late = query(
        database_url,
        "SELECT DISTINCT t.instrument_token, t.mode FROM ticks t JOIN subscribed_instruments s "
        "ON s.instrument_token = t.instrument_token AND s.mode = t.mode "
        "WHERE s.until IS NOT NULL AND t.time > s.until + interval '1 s'",
    )
    assert late == []


@BOTH_SOURCES
async def test_each_stays_on_its_connection_and_new_ones_go_where_there_is_room(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_of(settings), "max_instruments", 20)
    monkeypatch.setattr(feed_of(settings), "max_connections", 3)
    every = SUBSCRIPTIONS_OF[settings.source]
    write_subscriptions(settings.subscriptions_path, every[:40])
    async with (
        simulator_of(settings, rate=2000) as simulator,
        ingest(of_feed(settings, simulator), policy=QUICK) as running,
    ):
        await until(serves(simulator, every[:40]))
        first, second = simulator.connections
        parts = [asked_of(each, simulator, every) for each in (first, second)]
        gone = {each.instrument_token for each in every[:3]}
        after = every[3:50]
        write_subscriptions(settings.subscriptions_path, after)
        await until(serves(simulator, after))
        assert simulator.connections[:2] == [first, second]
        assert len(simulator.connections) == 3
        held = [asked_of(each, simulator, after) for each in simulator.connections]
        assert (held[0] - parts[0], held[1]) == ({each.instrument_token for each in every[40:43]}, parts[1])
        assert parts[0] - held[0] == gone
        assert held[2] == {each.instrument_token for each in every[43:50]}

        # Too many are refused; and what was lost is subscribed as it is now.
        write_subscriptions(
            settings.subscriptions_path,
            [*every, replace(every[0], instrument_token=every[0].instrument_token + (1 << 20))],
        )
        await until(lambda: running.of_kind("warning"))
        assert "61 instruments are too many" in running.of_kind("warning")[0]["message"]
        simulator.reset()
        await until(lambda: len(simulator.connections) == 3 and first not in simulator.connections)
        await until(serves(simulator, after))
        await until(lambda: not running.capture._gaps._open)


@BOTH_SOURCES
async def test_a_capture_that_is_killed_after_a_change_goes_on_with_the_new_list(
    settings: Settings, database_url: str
) -> None:
    every = SUBSCRIPTIONS_OF[settings.source]
    write_subscriptions(settings.subscriptions_path, every[:30])
    async with simulator_of(settings, rate=500) as simulator:
        async with child.capture(settings, simulator.feed_url) as first:
            await until(serves(simulator, every[:30]))
            write_subscriptions(settings.subscriptions_path, every[20:])
            await until(serves(simulator, every[20:]))
            await until(lambda: ticks_of(database_url, every[-1].instrument_token))
            first.process.kill()
            await first.ended()
        async with child.capture(settings, simulator.feed_url) as second:
            await until(serves(simulator, every[20:]))
            await until(lambda: second.stored)
            simulator.rate = 0
            simulator.flush()
            await child.settled(second)
    assert_stored_exactly_once(settings, database_url)
    current = query(database_url, "SELECT instrument_token FROM subscribed_instruments WHERE until IS NULL")
    assert {token for (token,) in current} == {each.instrument_token for each in every[20:]}
    assert query(database_url, "SELECT count(*) FROM subscribed_instruments") == [(60,)]


class Chained:
    """A chain of 20 strikes, ten rupees apart from 1,000 on, that is the list of a capture."""

    def __init__(self, settings: Settings) -> None:
        every = SUBSCRIPTIONS_OF[settings.source]
        self.share, options = every[0], every[1:41]
        self.chain = Chain(
            self.share.instrument_token,
            2,
            Mode.FULL,
            date(2080, 11, 28),
            tuple(1000.0 + 10 * at for at in range(20)),
            tuple(
                tuple((each.instrument_token, each.symbol) for each in options[2 * at : 2 * at + 2]) for at in range(20)
            ),
        )
        write_resolution(settings, Resolution(self.subscriptions(5), [], [self.chain]))

    def subscriptions(self, centre: int) -> list[Subscription]:
        """The list with the window around this strike."""
        window = self.chain.window(centre)
        follows = self.share.instrument_token
        return [self.share, *(Subscription(token, Mode.FULL, symbol, follows) for token, symbol in window)]

    def trades_at(self, simulator: DhanSimulator | KiteSimulator, price: float) -> None:
        """The share trades there until it is told otherwise, give or take a few ticks."""
        market = simulator.market
        at = 0  # as in what is subscribed
        ticks = round(price / market._tick_size[at])
        market._ticks[at] = ticks
        market._floor[at], market._ceiling[at] = ticks - 4, ticks + 4
        market._fields["last_price"][at] = price  # which is sent whoever subscribes before its next trade


@BOTH_SOURCES
async def test_a_chain_follows_the_price_of_its_underlying_through_the_day(
    settings: Settings, database_url: str
) -> None:
    chained = Chained(settings)
    async with simulator_of(settings, rate=200) as simulator:
        chained.trades_at(simulator, 1050.0)
        async with ingest(of_feed(settings, simulator)) as running:
            await until(serves(simulator, chained.subscriptions(5)))
            [connection] = simulator.connections
            for price, centre in ((1054.0, 5), (1058.0, 6), (1140.0, 14), (500.0, 0)):
                chained.trades_at(simulator, price)
                await until(serves(simulator, chained.subscriptions(centre)))
                assert read_subscriptions(settings.subscriptions_path) == chained.subscriptions(centre)
            assert simulator.connections == [connection]
            changes = [(each["added"], each["removed"]) for each in running.of_kind("subscriptions")]
            assert changes == [(2, 2), (10, 10), (6, 10)]
            assert running.of_kind("warning") == []

        # A capture that starts again begins where this one was.
        async with ingest(of_feed(settings, simulator)) as again:
            await until(serves(simulator, chained.subscriptions(0)))
            await until(lambda: again.of_kind("status") and again.of_kind("status")[-1]["ticks"])
            assert again.of_kind("subscriptions") == []
    [(told,)] = query(
        database_url,
        "SELECT count(*) FROM subscribed_instruments WHERE until IS NOT NULL",
    )
    assert told == 22
    assert query(database_url, "SELECT cause FROM feed_gaps WHERE cause <> 'stop'") == []


@BOTH_SOURCES
async def test_a_chain_follows_the_price_while_the_database_is_away_and_not_the_past_when_it_is_back(
    settings: Settings, postgres_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_STALE_S", 1.5)
    chained = Chained(settings)
    async with simulator_of(settings, rate=200) as simulator:
        chained.trades_at(simulator, 1050.0)
        async with ingest(of_feed(settings, simulator)) as running:
            await until(serves(simulator, chained.subscriptions(5)))
            await until(lambda: ticks_of(database_url, chained.share.instrument_token))
            with outage(postgres_url, database_url):
                await until(lambda: running.of_kind("warning"))
                for price, centre in ((1140.0, 14), (1100.0, 10)):
                    chained.trades_at(simulator, price)
                    await until(serves(simulator, chained.subscriptions(centre)))
                # Of the last price, too, more is stored late than counts as the present.
                waited_s = running.of_kind("status")[-1]["backlog_seconds"]
                await until(lambda: running.of_kind("status")[-1]["backlog_seconds"] > waited_s + 3)
            simulator.rate = 0
            simulator.flush()
            await until(lambda: running.of_kind("status")[-1]["backlog_seconds"] == 0.0)
            assert read_subscriptions(settings.subscriptions_path) == chained.subscriptions(10)
            assert [(each["added"], each["removed"]) for each in running.of_kind("subscriptions")] == [
                (10, 10),
                (8, 8),
            ]
    assert_stored_exactly_once(settings, database_url)
