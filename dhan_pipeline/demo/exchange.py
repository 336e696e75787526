"""The demo's exchange: a process of its own, and the settings that lead to it."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from pydantic import SecretStr

from dhan_pipeline.clock import Clock
from dhan_pipeline.demo.services import Services, free_port, listens
from dhan_pipeline.feeds.simulator.dhan import choose_instruments
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.feeds.simulator.rest import DETAILED_PATH
from dhan_pipeline.feeds.simulator.tokens import CLIENT_ID, PIN, TOTP_SECRET
from dhan_pipeline.instruments import ExchangeSegment, split_instrument_token
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source


@contextmanager
def exchange(
    services: Services, sources: Sequence[Source], data_dir: Path, database_url: str, instruments: int, rate: float
) -> Iterator[Settings]:
    """Run the exchange; yields the settings of a pipeline that captures all that it trades.

    `rate` in ticks a second. The scrip master is of today, so that contracts expire as they would.
    """
    master = data_dir / "exchange" / f"scrip_master_{Clock().now().astimezone(IST):%Y-%m-%d}.csv"
    if not master.exists():
        master.parent.mkdir(parents=True, exist_ok=True)
        part = master.with_suffix(".part")
        write_synthetic_master(part, on=Clock().now().astimezone(IST).date())
        part.replace(master)
    _write_rules(data_dir, choose_instruments(master, instruments))
    feed_port, rest_port = free_port(), free_port()
    token_file = data_dir / "dhan_token.json"
    command = ["dhan-pipeline", "simulate", "--listen", f"127.0.0.1:{feed_port}", "--rest", f"127.0.0.1:{rest_port}"]
    command += ["--instruments", str(instruments), "--rate", str(rate), "--master", str(master)]
    command += ["--token-file", str(token_file)]
    with services.run("exchange", *command) as running:
        running.wait_until(lambda: listens(feed_port) and token_file.exists())
        yield Settings(
            data_source=",".join(sources),
            data_dir=data_dir,
            database_url=database_url,
            dhan_feed_url=f"ws://127.0.0.1:{feed_port}",
            dhan_scrip_master_url=f"http://127.0.0.1:{rest_port}{DETAILED_PATH}",
            dhan_token_file=token_file,
            # Whatever a person has in `.env`: a demo makes no tokens of theirs.
            dhan_client_id=CLIENT_ID,
            dhan_access_token=None,
            dhan_pin=SecretStr(PIN),
            dhan_totp_secret=SecretStr(TOTP_SECRET),
            dhan_api_url=f"http://127.0.0.1:{rest_port}",
            dhan_auth_url=f"http://127.0.0.1:{rest_port}",
            subscriptions_file=data_dir / "subscriptions.yaml",
            sessions="always",
        )


def _write_rules(data_dir: Path, tokens: Sequence[int]) -> None:
    """Rules that subscribe what the exchange trades: indices in quote mode, all else in full."""
    chosen = [split_instrument_token(token) for token in tokens]
    rules = []
    for name, mode, is_index in (("indices", "quote", True), ("tradables", "full", False)):
        rows = [row for row in chosen if (row[0] is ExchangeSegment.IDX_I) is is_index]
        if rows:
            with (data_dir / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(("exchange_segment", "security_id"))
                writer.writerows((segment.name, security_id) for segment, security_id in rows)
            rules.append({"list": f"{name}.csv", "mode": mode})
    (data_dir / "subscriptions.yaml").write_text(yaml.safe_dump({"rules": rules}), encoding="utf-8")
