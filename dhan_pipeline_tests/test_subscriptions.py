import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dhan_pipeline.feeds.dhan.scrip_master import parse_dhan_csv
from dhan_pipeline.feeds.kite.instruments_dump import parse_kite_csv
from dhan_pipeline.feeds.simulator.correspondence import dhan_token_of
from dhan_pipeline.feeds.simulator.kite_dump import write_synthetic_dump
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.instruments import KiteSegment, generate_instrument_token, split_instrument_token
from dhan_pipeline.subscriptions import (
    MAX_SUBSCRIPTIONS,
    Resolution,
    Spot,
    Subscription,
    SubscriptionError,
    load_rules,
    read_subscriptions,
    resolve,
    spot_in_words,
    write_subscriptions,
)
from dhan_pipeline.ticks import Mode

ON = date(2026, 11, 20)
EXAMPLE = Path(__file__).parent.parent / "subscriptions.example.yaml"


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("master") / "master.csv"
    write_synthetic_master(path, 22_800, on=ON)
    return path


@pytest.fixture(scope="module")
def instruments(master: Path) -> pd.DataFrame:
    """A small market."""
    return parse_dhan_csv(master).rows


@pytest.fixture(scope="module")
def kites(master: Path) -> pd.DataFrame:
    """The same market, as Kite lists it."""
    path = master.with_name("dump.csv")
    write_synthetic_dump(path, master)
    return parse_kite_csv(path).rows


@pytest.fixture
def rules_file(tmp_path: Path) -> Path:
    return tmp_path / "subscriptions.yaml"


def resolved(rules_file: Path, text: str, instruments: pd.DataFrame, on: date = ON) -> Resolution:
    """What rules, written as the list under `rules:`, come to."""
    rules_file.write_text(f"rules:\n{text}\n")
    return resolve(load_rules(rules_file), instruments, on, "dhan")


def ids(resolution: Resolution) -> list[int]:
    """Dhan's ids of what is selected, in order."""
    return [split_instrument_token(s.instrument_token)[1] for s in resolution.subscriptions]


def facts(resolution: Resolution, instruments: pd.DataFrame) -> pd.DataFrame:
    """The instruments selected, in order."""
    return instruments.set_index("instrument_token").loc[[s.instrument_token for s in resolution.subscriptions]]


def test_the_example_is_valid_and_finds_everything_it_names(instruments: pd.DataFrame) -> None:
    resolution = resolve(load_rules(EXAMPLE), instruments, ON, "dhan")
    assert [entry.missing for entry in resolution.summary] == [()] * 6
    assert [entry.selected for entry in resolution.summary[:3]] == [7, 10, 8]
    nifty = generate_instrument_token("IDX_I", 13)
    assert resolution.subscriptions[0] == Subscription(nifty, Mode.QUOTE, "NIFTY", nifty)


def test_symbols_come_in_the_order_written_in_the_mode_given(rules_file: Path, instruments: pd.DataFrame) -> None:
    resolution = resolved(rules_file, " - symbols: [TCS, reliance]\n   mode: ticker", instruments)
    assert resolution.subscriptions == [
        Subscription(generate_instrument_token("NSE_EQ", 11536), Mode.TICKER, "TCS"),
        Subscription(generate_instrument_token("NSE_EQ", 2885), Mode.TICKER, "RELIANCE"),
    ]


def test_a_symbol_means_the_share_unless_a_series_is_given(rules_file: Path, instruments: pd.DataFrame) -> None:
    share = resolved(rules_file, " - symbols: ELECTCAST", instruments)
    assert ids(share) == [928]
    warrant = resolved(rules_file, " - symbols: ELECTCAST\n   series: W1", instruments)
    assert ids(warrant) == [18116]


def test_symbols_that_yaml_would_take_for_something_else_stay_symbols(rules_file: Path) -> None:
    rules_file.write_text("rules: [{symbols: [ON, NO, 1E5, 0x10, ~]}]")
    assert load_rules(rules_file)[0].names == ("ON", "NO", "1E5", "0x10", "~")


def test_futures_are_of_the_nearest_expiries_and_nearest_first(rules_file: Path, instruments: pd.DataFrame) -> None:
    resolution = resolved(rules_file, " - futures: [NIFTY, RELIANCE]\n   expiries: 2", instruments)
    rows = facts(resolution, instruments)
    assert rows["underlying_symbol"].tolist() == ["NIFTY", "RELIANCE", "NIFTY", "RELIANCE"]
    assert rows["expiry"].is_monotonic_increasing
    assert rows["expiry"].nunique() >= 2
    assert set(rows["instrument_type"]) == {"FUTIDX", "FUTSTK"}


def test_an_expiry_is_selected_on_its_day_and_not_after(rules_file: Path, instruments: pd.DataFrame) -> None:
    rule = " - options: NIFTY\n   expiries: 1"
    first = facts(resolved(rules_file, rule, instruments), instruments)["expiry"].unique()[0]
    same = facts(resolved(rules_file, rule, instruments, first.date()), instruments)
    assert same["expiry"].unique().tolist() == [first]
    following = date.fromordinal(first.date().toordinal() + 1)
    later = facts(resolved(rules_file, rule, instruments, following), instruments)
    assert (later["expiry"] > first).all()
    assert later["expiry"].nunique() == 1


def test_no_rule_selects_what_has_expired(rules_file: Path, instruments: pd.DataFrame) -> None:
    future = instruments[instruments["trading_symbol"] == "NIFTY-Nov2026-FUT"].iloc[0]
    name = f"{future['exchange_segment']}:{future['security_id']}"
    (rules_file.parent / "ids.csv").write_text("exchange_segment,security_id\n" + name.replace(":", ","))
    rules = " - list: ids.csv\n - symbols: NIFTY-Nov2026-FUT\n   segment: NSE_FNO\n - indices: NIFTY"
    last_day = future["expiry"].date()
    on_its_day = resolved(rules_file, rules, instruments, last_day)
    assert [entry.selected for entry in on_its_day.summary] == [1, 1, 1]
    after = resolved(rules_file, rules, instruments, date.fromordinal(last_day.toordinal() + 1))
    assert [entry.missing for entry in after.summary] == [(name,), ("NIFTY-Nov2026-FUT",), ()]


def test_strikes_are_those_in_the_middle_calls_and_puts(rules_file: Path, instruments: pd.DataFrame) -> None:
    rows = facts(resolved(rules_file, " - options: NIFTY\n   expiries: 2\n   strikes: 5", instruments), instruments)
    assert len(rows) == 20
    for _, chain in rows.groupby("expiry"):
        assert sorted(chain["strike"].unique()) == [23900, 23950, 24000, 24050, 24100]
        assert chain["option_type"].value_counts().to_dict() == {"CE": 5, "PE": 5}


def test_a_limit_keeps_the_nearest(rules_file: Path, instruments: pd.DataFrame) -> None:
    rows = facts(resolved(rules_file, " - options: [NIFTY, BANKNIFTY]\n   limit: 4", instruments), instruments)
    assert len(rows) == 4
    assert set(rows["strike"]) == {24000, 55000}


def test_all_selects_a_whole_segment(rules_file: Path, instruments: pd.DataFrame) -> None:
    resolution = resolved(rules_file, " - indices: all\n - symbols: all\n   segment: BSE_EQ\n   series: A", instruments)
    assert [entry.selected for entry in resolution.summary] == [
        191,
        ((instruments["exchange_segment"] == "BSE_EQ") & (instruments["series"] == "A")).sum(),
    ]


def test_the_first_rule_decides_the_mode_and_the_summary_says_what_each_added(
    rules_file: Path, instruments: pd.DataFrame
) -> None:
    resolution = resolved(rules_file, " - symbols: TCS\n   mode: ticker\n - symbols: [TCS, INFY, NOSUCH]", instruments)
    assert {s.symbol: s.mode for s in resolution.subscriptions} == {"TCS": Mode.TICKER, "INFY": Mode.FULL}
    first, second = resolution.summary
    assert (first.line, first.rule, first.selected, first.added, first.missing) == (2, "symbols: TCS", 1, 1, ())
    assert (second.line, second.selected, second.added, second.missing) == (4, 2, 1, ("NOSUCH",))


def test_a_list_names_instruments_by_id(rules_file: Path, instruments: pd.DataFrame) -> None:
    (rules_file.parent / "ids.csv").write_text("security_id,exchange_segment,note\n13,IDX_I,x\n2885,,y\n1,NSE_FNO,z\n")
    resolution = resolved(rules_file, " - list: ids.csv\n   segment: NSE_EQ\n   mode: quote", instruments)
    assert [(s.exchange_segment.name, s.symbol) for s in resolution.subscriptions] == [
        ("IDX_I", "NIFTY"),
        ("NSE_EQ", "RELIANCE"),
    ]
    assert resolution.summary[0].missing == ("NSE_FNO:1",)


@pytest.mark.parametrize(
    "text",
    [
        EXAMPLE.read_text().partition("rules:\n")[2],
        " - symbols: [RELIANCE, ELECTCAST]",
        " - symbols: ELECTCAST\n   series: W1",
        " - symbols: all\n   limit: 40",
        " - futures: all\n   expiries: 2\n   segment: BSE_FNO",
        " - options: [USDINR]\n   segment: NSE_CURRENCY",
    ],
)
def test_the_same_rules_select_the_same_instruments_of_either_broker(
    rules_file: Path, instruments: pd.DataFrame, kites: pd.DataFrame, text: str
) -> None:
    dhans = resolved(rules_file, text, instruments)
    resolution = resolve(load_rules(rules_file), kites, ON, "kite")
    assert [rule.missing for rule in resolution.summary] == [()] * len(resolution.summary)
    assert [(s.mode, dhan_token_of(s.instrument_token)) for s in resolution.subscriptions] == [
        (s.mode, s.instrument_token) for s in dhans.subscriptions
    ]


def test_an_index_is_named_as_its_derivatives_or_as_either_broker_names_it(
    rules_file: Path, instruments: pd.DataFrame, kites: pd.DataFrame
) -> None:
    text = " - indices: [NIFTY 50, BANKNIFTY, india vix, NOSUCH]"
    assert ids(resolved(rules_file, text, instruments)) == [13, 25, 21]
    resolution = resolve(load_rules(rules_file), kites, ON, "kite")
    assert [s.symbol for s in resolution.subscriptions] == ["NIFTY 50", "NIFTY BANK", "INDIA VIX"]
    assert resolution.summary[0].missing == ("NOSUCH",)


def test_a_list_finds_by_the_exchanges_number_what_the_other_broker_called_so(
    rules_file: Path, instruments: pd.DataFrame, kites: pd.DataFrame
) -> None:
    (rules_file.parent / "ids.csv").write_text(
        "instrument_token,exchange_segment,security_id\n"
        "738561,,\n"  # Kite's own token of RELIANCE
        ",NSE_EQ,11536\n"
        f"{generate_instrument_token('BSE_EQ', 500325)},,\n"
        "256265,,\n"  # Kite's NIFTY
        ",IDX_I,13\n"  # Dhan's
    )
    dhans = resolved(rules_file, " - list: ids.csv", instruments)
    assert [s.symbol for s in dhans.subscriptions] == ["RELIANCE", "TCS", "RELIANCE", "NIFTY"]
    assert dhans.summary[0].missing == ("256265",)
    resolution = resolve(load_rules(rules_file), kites, ON, "kite")
    assert [s.instrument_token for s in resolution.subscriptions] == [738561, 11536 << 8 | 1, 500325 << 8 | 4, 256265]
    assert resolution.summary[0].missing == ("IDX_I:13",)


def test_a_token_of_a_segment_that_only_kite_has_names_nothing_of_dhans(rules_file: Path) -> None:
    (rules_file.parent / "ids.csv").write_text(
        "instrument_token\n"
        f"{500 << 8 | KiteSegment.NCO}\n"
        f"{500 << 8 | KiteSegment.MCXSX}\n"
        f"{500 << 8 | KiteSegment.MCX}\n"
    )
    numbered_500 = pd.DataFrame(
        {
            "instrument_token": [generate_instrument_token(name, 500) for name in ("MCX_COMM", "NSE_CURRENCY")],
            "exchange_segment": ["MCX_COMM", "NSE_CURRENCY"],
            "trading_symbol": ["GOLD", "USDINR"],
            "expiry": pd.Timestamp(ON),
        }
    )
    resolution = resolved(rules_file, " - list: ids.csv", numbered_500)
    assert [s.symbol for s in resolution.subscriptions] == ["GOLD"]
    assert resolution.summary[0].missing == ("128012", "128008")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"line 1: a file of rules holds the one key `rules`"),
        ("rules: []", r"line 1: there is no rule"),
        ("rules:\n - symbols: [TCS\n", r"line 3: not valid YAML"),
        ("rule:\n - symbols: TCS", r"line 1: a file of rules holds the one key"),
        ("rules:\n - symbols: TCS\n - mode: full", r"line 3: a rule has one of indices, symbols"),
        ("rules:\n - symbols: TCS\n   indices: NIFTY", r"line 2: a rule has one of"),
        ("rules:\n - symbols: TCS\n   strikes: 4", r"line 3: strikes does not apply to symbols"),
        ("rules:\n - symbols: TCS\n   mode: depth", r"line 3: depth is none of ticker, quote, full"),
        ("rules:\n - symbols: TCS\n   segment: NSE", r"line 3: NSE is none of IDX_I, NSE_EQ"),
        ("rules:\n - symbols: TCS\n   limit: 0", r"line 3: 0 is not a number from 1"),
        ("rules:\n - symbols: TCS\n   limit: many", r"line 3: many is not a number from 1"),
        ("rules:\n - symbols: TCS\n   symbols: INFY", r"line 3: symbols is given twice"),
        ("rules:\n - symbols: []", r"line 2: the list is empty"),
        ("rules:\n - symbols: {a: b}", r"line 2: a list is expected here"),
        ("rules:\n - symbols: [TCS, [INFY]]", r"line 2: a word is expected here"),
        ("symbols: " + "[" * 600, r"is nested too deep"),
        ("rules:\n - TCS", r"line 2: `key: value` lines are expected here"),
        ("rules:\n - options: NIFTY\n   around_spot: 0", r"line 3: 0 is not a number from 1"),
        ("rules:\n - options: NIFTY\n   around_spot: 5\n   strikes: 4", r"line 4: strikes and around_spot do not go"),
        ("rules:\n - options: NIFTY\n   limit: 9\n   around_spot: 5", r"line 3: limit and around_spot do not go toge"),
        ("rules:\n - futures: NIFTY\n   around_spot: 5", r"line 3: around_spot does not apply to futures"),
        ("rules:\n - indices: F&O", r"line 2: F&O stands for shares, not for indices"),
        ("rules:\n - list: none.csv", r"line 2: the list .*none.csv cannot be read: No such file or directory"),
        ("rules:\n - list: bad.csv", r"bad.csv, line 3: NSE_EQ x is not an instrument"),
        ("rules:\n - list: headless.csv", r"headless.csv has no column security_id or instrument_token"),
        ("rules:\n - list: ids.csv", r"ids.csv, line 2: no segment 13 is not an instrument"),
        ("rules:\n - list: tokens.csv", r"tokens.csv, line 3: 408074 is not an instrument"),
    ],
)
def test_a_wrong_rule_is_told_with_its_line(rules_file: Path, text: str, sentence: str) -> None:
    (rules_file.parent / "bad.csv").write_text("exchange_segment,security_id\nNSE_EQ,1\nNSE_EQ,x\n")
    (rules_file.parent / "headless.csv").write_text("13\n25\n")
    (rules_file.parent / "ids.csv").write_text("security_id\n13\n")
    (rules_file.parent / "tokens.csv").write_text("instrument_token\n738561\n408074\n")
    rules_file.write_text(text)
    with pytest.raises(SubscriptionError, match=sentence):
        load_rules(rules_file)


def test_a_missing_file_of_rules_is_told_with_the_example_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(SubscriptionError, match=r"There is no file of rules .*subscriptions\.example\.yaml"):
        load_rules(tmp_path / "subscriptions.yaml")


def test_a_list_of_another_sources_instruments_is_named_by_who_reads_its_own(tmp_path: Path) -> None:
    path = tmp_path / "subscriptions.csv"
    write_subscriptions(path, [Subscription(738561, Mode.FULL, "RELIANCE")])
    assert len(read_subscriptions(path, "kite")) == len(read_subscriptions(path)) == 1
    with pytest.raises(SubscriptionError, match="line 2: RELIANCE is no instrument of dhan"):
        read_subscriptions(path, "dhan")


def test_instruments_that_were_never_synced_are_told_with_what_to_do(
    rules_file: Path, instruments: pd.DataFrame
) -> None:
    of_the_existing_system = instruments.head(5).assign(exchange_segment=None)
    for unsynced in (instruments.head(0), of_the_existing_system):
        with pytest.raises(SubscriptionError, match="no instruments of dhan; run: dhan-pipeline sync-instruments"):
            resolved(rules_file, " - symbols: RELIANCE", unsynced)


def test_rules_that_select_nothing_are_an_error(rules_file: Path, instruments: pd.DataFrame) -> None:
    with pytest.raises(SubscriptionError, match="select no instrument"):
        resolved(rules_file, " - symbols: NOSUCH", instruments)
    with pytest.raises(SubscriptionError, match="select no instrument"):
        resolved(rules_file, " - futures: all", instruments, date(2036, 1, 1))


def test_more_than_can_be_subscribed_is_an_error_that_names_the_rule(rules_file: Path) -> None:
    count = MAX_SUBSCRIPTIONS["dhan"] + 1
    many = pd.DataFrame(
        {
            "instrument_token": generate_instrument_token("NSE_EQ", 0) + np.arange(count),
            "exchange_segment": "NSE_EQ",
            "trading_symbol": [f"S{i}" for i in range(count)],
            "series": "EQ",
            "expiry": pd.NaT,
        }
    )
    with pytest.raises(SubscriptionError, match=r"25001 instruments .* rule in line 3 adds 25000, give it a limit"):
        resolved(rules_file, " - symbols: S7\n - symbols: all", many)
    assert len(resolved(rules_file, " - symbols: all\n   limit: 25000", many).subscriptions) == 25_000
    with pytest.raises(SubscriptionError, match="where 9000 can be subscribed"):
        resolve(load_rules(rules_file), many, ON, "kite")


def test_a_written_list_reads_back_the_same(tmp_path: Path, instruments: pd.DataFrame) -> None:
    subscriptions = resolve(load_rules(EXAMPLE), instruments, ON, "dhan").subscriptions
    path = tmp_path / "data" / "subscriptions.csv"
    write_subscriptions(path, subscriptions[:3])
    write_subscriptions(path, subscriptions)
    assert read_subscriptions(path) == subscriptions
    assert list(path.parent.iterdir()) == [path]
    assert path.read_text().splitlines()[:2] == [
        "instrument_token,exchange_segment,security_id,mode,symbol,follows",
        "1099511627789,IDX_I,13,quote,NIFTY,1099511627789",
    ]


def test_a_written_list_of_kites_has_no_security_id(tmp_path: Path) -> None:
    subscriptions = [Subscription(256265, Mode.QUOTE, "NIFTY 50"), Subscription(738561, Mode.FULL, "RELIANCE")]
    write_subscriptions(tmp_path / "subscriptions.csv", subscriptions)
    assert read_subscriptions(tmp_path / "subscriptions.csv") == subscriptions
    assert (tmp_path / "subscriptions.csv").read_text().splitlines()[2] == "738561,NSE_EQ,,full,RELIANCE,"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ("instrument_token,exchange_segment,security_id,mode,symbol\n", "is empty"),
        ("exchange_segment,security_id\nIDX_I,13\n", "line 2: not a resolved subscription"),
        (
            "instrument_token,exchange_segment,security_id,mode,symbol\n738561,IDX_I,13,quote,NIFTY\n",
            "line 2: not a resolved subscription",
        ),
        (
            "instrument_token,exchange_segment,security_id,mode,symbol\n1099511627789,IDX_I,13,loud,NIFTY\n",
            "line 2: not a resolved subscription",
        ),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "subscriptions.csv").write_text(text)
    with pytest.raises(SubscriptionError, match=sentence):
        read_subscriptions(tmp_path / "subscriptions.csv")


def test_no_list_is_told_with_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(SubscriptionError, match="run: dhan-pipeline subscriptions,"):
        read_subscriptions(tmp_path / "subscriptions.csv")


def test_the_capture_reads_the_list_without_pandas() -> None:
    code = "import sys, dhan_pipeline.subscriptions; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


NOON = datetime(2026, 11, 20, 6, 30, tzinfo=UTC)


def priced(rules_file: Path, text: str, instruments: pd.DataFrame, **prices: float) -> Resolution:
    """What rules come to at these last prices of indices, shares or futures, by symbol."""
    rules_file.write_text(f"rules:\n{text}\n")
    tokens = instruments.set_index("trading_symbol")["instrument_token"]
    known = {int(tokens.loc[[name]].iloc[0]): (price, NOON) for name, price in prices.items()}
    return resolve(
        load_rules(rules_file),
        instruments,
        ON,
        "dhan",
        lambda asked: {token: known[token] for token in asked if token in known},
    )


def test_the_universe_is_the_shares_that_have_derivatives(
    rules_file: Path, instruments: pd.DataFrame, kites: pd.DataFrame
) -> None:
    text = " - symbols: F&O\n   mode: quote\n - futures: F&O\n   expiries: 1"
    resolution = resolved(rules_file, text, instruments)
    shares, futures = resolution.summary
    rows = facts(resolution, instruments)
    derivatives = instruments[(instruments["exchange_segment"] == "NSE_FNO")]
    of_shares = derivatives[derivatives["instrument_type"].isin(["FUTSTK", "OPTSTK"])]
    assert set(rows["trading_symbol"][: shares.selected]) == set(of_shares["underlying_symbol"])
    assert set(rows["series"][: shares.selected]) == {"EQ"}
    assert set(rows["instrument_type"][shares.selected :]) == {"FUTSTK"}
    assert (str(shares.rule), futures.missing) == ("symbols: F&O", ())
    of_kite = resolve(load_rules(rules_file), kites, ON, "kite")
    assert [rule.selected for rule in of_kite.summary] == [rule.selected for rule in resolution.summary]


def test_options_around_the_price_are_so_many_strikes_on_each_side_of_each_expiry(
    rules_file: Path, instruments: pd.DataFrame
) -> None:
    text = " - options: [NIFTY]\n   expiries: 2\n   around_spot: 2"
    resolution = priced(rules_file, text, instruments, NIFTY=24_210.0)
    options = [s for s in resolution.subscriptions if s.moves]
    rows = instruments.set_index("instrument_token").loc[[s.instrument_token for s in options]]
    assert len(rows) == 20
    for _, chain in rows.groupby("expiry"):
        assert sorted(chain["strike"].unique()) == [24_100, 24_150, 24_200, 24_250, 24_300]
        assert chain["option_type"].value_counts().to_dict() == {"CE": 5, "PE": 5}
    assert rows["strike"].iloc[0] == 24_200
    nifty = generate_instrument_token("IDX_I", 13)
    assert {s.follows for s in options} == {nifty}
    rule, followed = resolution.summary
    assert rule.spots == (Spot("NIFTY", nifty, 24_210.0, NOON),)
    assert spot_in_words(rule.spots[0]) == "NIFTY at 24,210.00, its price of 20 Nov, 12:00"
    # What is followed is subscribed with it, since no rule has it.
    assert (followed.line, followed.rule, followed.added) == (2, "followed: NIFTY", 1)
    assert resolution.subscriptions[-1] == Subscription(nifty, Mode.QUOTE, "NIFTY", nifty)
    assert [(chain.expiry, chain.around_spot, chain.underlying_token) for chain in resolution.chains] == [
        (expiry.date(), 2, nifty) for expiry in rows["expiry"].unique()
    ]


def test_without_a_price_the_middle_of_the_strikes_stands_in_until_the_first_one(
    rules_file: Path, instruments: pd.DataFrame
) -> None:
    resolution = priced(rules_file, " - indices: NIFTY\n - options: NIFTY\n   around_spot: 1", instruments)
    rows = instruments.set_index("instrument_token").loc[
        [s.instrument_token for s in resolution.subscriptions if s.moves]
    ]
    assert set(rows["strike"]) == {23_950, 24_000, 24_050}
    assert len(resolution.summary) == 2
    [spot] = resolution.summary[1].spots
    assert spot_in_words(spot) == "the middle of NIFTY's strikes, until the first price comes"


def test_options_follow_the_share_and_where_there_is_none_the_nearest_future(
    rules_file: Path, instruments: pd.DataFrame
) -> None:
    text = (
        " - options: [RELIANCE, NIFTY]\n   expiries: 1\n   around_spot: 1\n"
        " - options: all\n   segment: NSE_CURRENCY\n   expiries: 1\n   around_spot: 1"
    )
    resolution = priced(rules_file, text, instruments)
    shares, currencies = [rule for rule in resolution.summary if rule.spots]
    assert [spot.instrument_token for spot in shares.spots] == [
        generate_instrument_token("NSE_EQ", 2885),
        generate_instrument_token("IDX_I", 13),
    ]
    futures = instruments.set_index("instrument_token").loc[[spot.instrument_token for spot in currencies.spots]]
    assert set(futures["instrument_type"].str[:3]) == {"FUT"}
    assert futures["underlying_symbol"].tolist() == [spot.underlying for spot in currencies.spots]


def test_what_another_rule_selects_too_does_not_follow(rules_file: Path, instruments: pd.DataFrame) -> None:
    text = " - options: NIFTY\n   expiries: 1\n   around_spot: 3\n - options: NIFTY\n   expiries: 1\n   strikes: 1"
    resolution = priced(rules_file, text, instruments, NIFTY=24_000.0)
    fixed = [s for s in resolution.subscriptions if not s.moves and "NIFTY-" in s.symbol]
    assert len(fixed) == 2
    assert all("24000" in s.symbol for s in fixed)
    assert len([s for s in resolution.subscriptions if s.moves]) == 12
