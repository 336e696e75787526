from datetime import date
from pathlib import Path

from dhan_pipeline.demo.exchange import _write_rules
from dhan_pipeline.feeds.dhan.scrip_master import parse_dhan_csv
from dhan_pipeline.feeds.kite.instruments_dump import parse_kite_csv
from dhan_pipeline.feeds.simulator.correspondence import dhan_token_of
from dhan_pipeline.feeds.simulator.dhan import choose_instruments, choose_rows
from dhan_pipeline.feeds.simulator.kite_dump import write_synthetic_dump
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.instruments import ExchangeSegment, segment_of
from dhan_pipeline.subscriptions import load_rules, resolve
from dhan_pipeline.ticks import Mode

ON = date(2026, 11, 20)


def test_what_the_exchange_trades_is_what_is_subscribed_of_either_broker(tmp_path: Path) -> None:
    master, dump = tmp_path / "master.csv", tmp_path / "dump.csv"
    write_synthetic_master(master, 3000, on=ON)
    write_synthetic_dump(dump, master)
    traded = choose_instruments(master, 200)
    _write_rules(tmp_path, choose_rows(master, 200))
    rules = load_rules(tmp_path / "subscriptions.yaml")
    dhans = resolve(rules, parse_dhan_csv(master).rows, ON, "dhan")
    kites = resolve(rules, parse_kite_csv(dump).rows, ON, "kite")
    modes = {s.instrument_token: s.mode for s in dhans.subscriptions}
    assert set(modes) == set(traded)
    assert {token for token, mode in modes.items() if mode == Mode.QUOTE} == {
        token for token in traded if segment_of(token) is ExchangeSegment.IDX_I
    }
    assert {dhan_token_of(s.instrument_token): s.mode for s in kites.subscriptions} == modes
    assert all(rule.missing == () for rule in (*dhans.summary, *kites.summary))
