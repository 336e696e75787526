from datetime import date
from pathlib import Path

import pandas as pd
import pytest

from dhan_pipeline.feeds.dhan.scrip_master import parse_dhan_csv
from dhan_pipeline.feeds.kite.instruments_dump import InstrumentMaster, parse_kite_csv
from dhan_pipeline.feeds.simulator.correspondence import dhan_token_of
from dhan_pipeline.feeds.simulator.kite_dump import DIRT, write_synthetic_dump
from dhan_pipeline.feeds.simulator.master import write_synthetic_master

ON = date(2026, 11, 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small market as both brokers list it."""
    folder = tmp_path_factory.mktemp("market")
    write_synthetic_master(folder / "dhan.csv", 5_000, on=ON)
    write_synthetic_dump(folder / "kite.csv", folder / "dhan.csv")
    return folder


@pytest.fixture(scope="module")
def dump(folder: Path) -> InstrumentMaster:
    return parse_kite_csv(folder / "kite.csv")


def test_the_dump_names_what_the_master_names(folder: Path, dump: InstrumentMaster) -> None:
    assert dump.quarantined.empty
    master = parse_dhan_csv(folder / "dhan.csv")
    assert dump.segment_counts == master.segment_counts
    assert [dhan_token_of(token) for token in dump.rows["instrument_token"]] == master.rows["instrument_token"].tolist()
    same = ["exchange_segment", "expiry", "strike", "option_type"]
    pd.testing.assert_frame_equal(dump.rows[same], master.rows[same])
    derivative = master.rows["expiry"].notna()
    assert dump.rows["underlying_symbol"][derivative].equals(master.rows["underlying_symbol"][derivative])
    assert (master.rows["exchange_segment"] == "NSE_EQ").sum() == dump.rows["series"].notna().sum()


@pytest.mark.parametrize(
    ("token", "symbol", "exchange", "segment"),
    [
        (256265, "NIFTY 50", "NSE", "INDICES"),
        (260105, "NIFTY BANK", "NSE", "INDICES"),
        (265, "SENSEX", "BSE", "INDICES"),
        (738561, "RELIANCE", "NSE", "NSE"),
        (128083204, "RELIANCE", "BSE", "BSE"),
        (18116 << 8 | 1, "ELECTCAST-W1", "NSE", "NSE"),
    ],
)
def test_well_known_instruments_have_their_real_tokens(
    dump: InstrumentMaster, token: int, symbol: str, exchange: str, segment: str
) -> None:
    row = dump.rows.set_index("instrument_token").loc[token]
    assert (row["trading_symbol"], row["exchange"], row["segment"]) == (symbol, exchange, segment)


def test_derivatives_are_spelled_as_kite_spells_them(dump: InstrumentMaster) -> None:
    nifty = dump.rows[(dump.rows["underlying_symbol"] == "NIFTY") & dump.rows["expiry"].notna()]
    spelled = nifty.groupby("expiry")["trading_symbol"].first().to_dict()
    assert spelled[pd.Timestamp("2026-11-24")] == "NIFTY26NOVFUT"
    assert spelled[pd.Timestamp("2026-12-01")] == "NIFTY26D01FUT"
    assert "NIFTY26DEC24000CE" in nifty["trading_symbol"].tolist()
    assert "NIFTY26D0824000PE" in nifty["trading_symbol"].tolist()
    usdinr = dump.rows[(dump.rows["exchange"] == "CDS") & (dump.rows["underlying_symbol"] == "USDINR")]
    assert "USDINR26NOV88.25CE" in usdinr["trading_symbol"].tolist()
    assert set(usdinr["segment"]) == {"CDS-FUT", "CDS-OPT"}


def test_the_same_master_gives_the_same_bytes_and_dirt_is_quarantined(folder: Path, tmp_path: Path) -> None:
    clean = (folder / "kite.csv").read_bytes()
    write_synthetic_dump(tmp_path / "kite.csv", folder / "dhan.csv")
    assert (tmp_path / "kite.csv").read_bytes() == clean
    write_synthetic_dump(tmp_path / "kite.csv", folder / "dhan.csv", dirty=True)
    dirty = parse_kite_csv(tmp_path / "kite.csv")
    assert dirty.quarantined["raw"].tolist() == list(DIRT)
    pd.testing.assert_frame_equal(dirty.rows, parse_kite_csv(folder / "kite.csv").rows)
