"""The demo's exchange: a process of its own, and the settings that lead to it."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydantic import SecretStr

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.simulator.dhan import choose_rows
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.feeds.simulator.rest import DETAILED_PATH
from dhan_pipeline.feeds.simulator.tokens import (
    API_KEY,
    API_SECRET,
    CLIENT_ID,
    PIN,
    TOTP_SECRET,
    make_kite_access_token,
)
from dhan_pipeline.instruments import ExchangeSegment
from dhan_pipeline.local.services import Services, free_port, listens
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import SOURCES, Source

if TYPE_CHECKING:
    import pandas as pd

#: How long Kite's token lasts, in seconds: a demo has nobody who logs in each morning.
_TOKEN_LASTS_S = 30 * 86_400


@contextmanager
def exchange(
    services: Services, sources: Sequence[Source], data_dir: Path, database_url: str, instruments: int, rate: float
) -> Iterator[Settings]:
    """Run the exchange of these brokers; yields the settings of a pipeline that captures all that it trades.

    `rate` in events a second, each of which is a tick of every broker. The scrip master is of today, so that contracts
    expire as they would.
    """
    master = data_dir / "exchange" / f"scrip_master_{Clock().now().astimezone(IST):%Y-%m-%d}.csv"
    if not master.exists():
        master.parent.mkdir(parents=True, exist_ok=True)
        part = master.with_suffix(".part")
        write_synthetic_master(part, on=Clock().now().astimezone(IST).date())
        part.replace(master)
    _write_rules(data_dir, choose_rows(master, instruments))
    sources = [source for source in SOURCES if source in sources]
    feed_port = {source: free_port() for source in SOURCES}
    rest_port = {source: free_port() for source in SOURCES}
    token_file = {source: data_dir / f"{source}_token.json" for source in SOURCES}
    command = ["dhan-pipeline", "simulate", "--source", ",".join(sources), "--master", str(master)]
    command += ["--instruments", str(instruments), "--rate", str(rate)]
    for source in sources:
        command += ["--listen", f"127.0.0.1:{feed_port[source]}", "--rest", f"127.0.0.1:{rest_port[source]}"]
    if "dhan" in sources:  # which comes first
        command += ["--token-file", str(token_file["dhan"])]
    rest_url = {source: f"http://127.0.0.1:{port}" for source, port in rest_port.items()}
    with services.run("exchange", *command) as running:
        running.wait_until(lambda: all(listens(feed_port[source]) for source in sources))
        yield Settings(
            data_source="dhan,kite" if len(sources) > 1 else sources[0],
            data_dir=data_dir,
            database_url=database_url,
            dhan_feed_url=f"ws://127.0.0.1:{feed_port['dhan']}",
            dhan_scrip_master_url=f"{rest_url['dhan']}{DETAILED_PATH}",
            dhan_token_file=token_file["dhan"],
            # Whatever a person has in `.env`: a demo makes no tokens of theirs.
            dhan_client_id=CLIENT_ID,
            dhan_access_token=None,
            dhan_pin=SecretStr(PIN),
            dhan_totp_secret=SecretStr(TOTP_SECRET),
            dhan_api_url=rest_url["dhan"],
            dhan_auth_url=rest_url["dhan"],
            kite_feed_url=f"ws://127.0.0.1:{feed_port['kite']}",
            kite_api_url=rest_url["kite"],
            kite_token_file=token_file["kite"],
            kite_api_key=API_KEY,
            # In a file it would be taken to die at six in the morning.
            kite_access_token=SecretStr(make_kite_access_token(expires_in=_TOKEN_LASTS_S)),
            kite_api_secret=SecretStr(API_SECRET),
            subscriptions_file=data_dir / "subscriptions.yaml",
            sessions="always",
            # The hours of before have some 600 ticks a minute, of however many instruments of all brokers.
            rate_instruments=20 * instruments * len(sources),
        )


def _write_rules(data_dir: Path, chosen: "pd.DataFrame") -> None:
    """Rules that subscribe what the exchange trades: indices in quote mode, all else in full.

    They serve both brokers: indices go by their names, and all else by its number at the exchange.
    """
    is_index = chosen["exchange_segment"] == ExchangeSegment.IDX_I.name
    rules: list[dict[str, object]] = []
    if is_index.any():
        rules.append({"indices": chosen["trading_symbol"][is_index].tolist(), "mode": "quote"})
    if not is_index.all():
        with (data_dir / "tradables.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("exchange_segment", "security_id"))
            writer.writerows(chosen.loc[~is_index, ["exchange_segment", "security_id"]].itertuples(index=False))
        rules.append({"list": "tradables.csv", "mode": "full"})
    (data_dir / "subscriptions.yaml").write_text(yaml.safe_dump({"rules": rules}), encoding="utf-8")
