from datetime import date
from pathlib import Path
from typing import Literal

import pandas as pd
import pytest

from dhan_pipeline.feeds.dhan.scrip_master import InstrumentMaster, parse_dhan_csv
from dhan_pipeline.feeds.simulator.master import MAX_ROWS, MIN_ROWS, write_synthetic_master

ON = date(2026, 11, 20)


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> InstrumentMaster:
    """A synthetic master of a tenth of the real size, as the parser reads it."""
    path = tmp_path_factory.mktemp("master") / "master.csv"
    write_synthetic_master(path, 22_800, on=ON)
    return parse_dhan_csv(path)


def test_it_has_exactly_the_rows_asked_for_and_the_parser_accounts_for_each(
    tmp_path: Path, master: InstrumentMaster
) -> None:
    assert len(master.rows) + sum(master.skipped.values()) == 22_800
    assert master.quarantined.empty
    write_synthetic_master(tmp_path / "small.csv", MIN_ROWS, on=ON)
    assert len((tmp_path / "small.csv").read_text().splitlines()) == MIN_ROWS + 1
    for rows in (MIN_ROWS - 1, MAX_ROWS + 1):
        with pytest.raises(ValueError, match="cannot be made"):
            write_synthetic_master(tmp_path / "other.csv", rows, on=ON)


def test_every_segment_is_there_and_so_is_what_the_parser_skips(master: InstrumentMaster) -> None:
    assert set(master.segment_counts) == {
        *("IDX_I", "NSE_EQ", "NSE_FNO", "NSE_CURRENCY", "BSE_EQ", "BSE_FNO", "BSE_CURRENCY", "MCX_COMM")
    }
    assert all(master.skipped.values())


@pytest.mark.parametrize(
    ("segment", "security_id", "symbol"),
    [
        *(("IDX_I", 13, "NIFTY"), ("IDX_I", 25, "BANKNIFTY"), ("IDX_I", 27, "FINNIFTY"), ("IDX_I", 38, "NIFTYNXT50")),
        *(("IDX_I", 442, "MIDCPNIFTY"), ("IDX_I", 21, "INDIA VIX"), ("IDX_I", 51, "SENSEX")),
        *(("NSE_EQ", 2885, "RELIANCE"), ("NSE_EQ", 13, "ABB"), ("NSE_EQ", 25, "ADANIENT")),
        *(("NSE_EQ", 1333, "HDFCBANK"), ("NSE_EQ", 11536, "TCS"), ("BSE_EQ", 500325, "RELIANCE")),
    ],
)
def test_well_known_instruments_have_their_real_ids(
    master: InstrumentMaster, segment: str, security_id: int, symbol: str
) -> None:
    rows = master.rows
    row = rows[(rows["exchange_segment"] == segment) & (rows["security_id"] == security_id)]
    assert row["trading_symbol"].tolist() == [symbol]


def test_derivatives_expire_after_the_day_and_the_nearest_nifty_chain_is_deep(master: InstrumentMaster) -> None:
    rows = master.rows
    derivatives = rows[rows["underlying_symbol"].notna()]
    assert (derivatives["expiry"] > pd.Timestamp(ON)).all()
    nifty = derivatives[(derivatives["underlying_symbol"] == "NIFTY") & (derivatives["instrument_type"] == "OPTIDX")]
    nearest = nifty[nifty["expiry"] == nifty["expiry"].min()]
    assert nearest["strike"].nunique() >= 25
    assert set(nearest.groupby("strike")["option_type"].agg("".join)) == {"CEPE"}


def test_both_layouts_say_the_same_but_for_the_isin(tmp_path: Path, master: InstrumentMaster) -> None:
    write_synthetic_master(tmp_path / "compact.csv", 22_800, on=ON, layout="compact")
    compact = parse_dhan_csv(tmp_path / "compact.csv")
    assert compact.layout == "compact"
    pd.testing.assert_frame_equal(compact.rows.drop(columns="isin"), master.rows.drop(columns="isin"))


@pytest.mark.parametrize("layout", ["compact", "detailed"])
def test_the_same_arguments_give_the_same_bytes_and_another_seed_gives_others(
    tmp_path: Path, layout: Literal["compact", "detailed"]
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_synthetic_master(tmp_path / name, 3_000, on=ON, seed=seed, layout=layout)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


def test_it_is_as_dirty_as_the_real_file(tmp_path: Path) -> None:
    write_synthetic_master(tmp_path / "master.csv", 22_800, on=ON)
    header, *lines = (tmp_path / "master.csv").read_text().splitlines()
    assert header.endswith("SM_FREEZE_QTY,")
    text = "\n".join(lines)
    for dirt in (
        "0001-01-01",
        ",-0.01000,XX,",
        ",0.00000,XX,",
        "NSETEST",
        ",65.0,",
        ", SONS & ",
        "NSE,M,",
        ",26000,NIFTY,",
    ):
        assert dirt in text
    fields = pd.read_csv(tmp_path / "master.csv", dtype=str, keep_default_na=False)
    ids = fields[fields["EXCH_ID"] == "NSE"]
    assert ids.duplicated(["SECURITY_ID"]).sum() > 1000
    assert not ids.duplicated(["SEGMENT", "SECURITY_ID"]).any()
    assert (fields["UNDERLYING_SYMBOL"] == "ELECTCAST").sum() == 3
