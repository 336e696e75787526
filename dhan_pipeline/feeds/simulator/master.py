"""A synthetic scrip master of real size, structure and dirt, in both of Dhan's layouts.

Well-known instruments have their real ids. Everything else is invented, and the same for the same seed and day.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

#: Below, some segment would lack what it is known for; above, there are not enough invented strikes.
MIN_ROWS = 2_000
MAX_ROWS = 300_000

#: Share of the rows by exchange and segment, as in the real file; the rest is NSE commodity, which no feed carries.
_SHARES = {
    "NSE E": 0.042,
    "BSE E": 0.058,
    "NSE D": 0.44,
    "BSE D": 0.24,
    "MCX M": 0.06,
    "NSE C": 0.05,
    "BSE C": 0.025,
}

_INDICES = (
    # exchange, id, symbol, name
    ("NSE", 13, "NIFTY", "Nifty 50"),
    ("NSE", 14, "NIFTY AUTO", "NIFTY Auto"),
    ("NSE", 17, "NIFTY 100", "NIFTY 100"),
    ("NSE", 18, "NIFTY 200", "NIFTY 200"),
    ("NSE", 19, "NIFTY 500", "NIFTY 500"),
    ("NSE", 21, "INDIA VIX", "India VIX"),
    ("NSE", 25, "BANKNIFTY", "Nifty Bank"),
    ("NSE", 27, "FINNIFTY", "Finnifty"),
    ("NSE", 28, "NIFTY FMCG", "NIFTY FMCG"),
    ("NSE", 29, "NIFTYIT", "Nifty IT"),
    ("NSE", 31, "NIFTY METAL", "NIFTY Metal"),
    ("NSE", 32, "NIFTY PHARMA", "NIFTY Pharma"),
    ("NSE", 33, "NIFTY PSU BANK", "NIFTY PSU Bank"),
    ("NSE", 34, "NIFTY REALTY", "NIFTY Realty"),
    ("NSE", 38, "NIFTYNXT50", "Nifty Next 50"),
    ("NSE", 42, "NIFTY ENERGY", "NIFTY Energy"),
    ("NSE", 43, "NIFTYINFRA", "NIFTY Infra"),
    ("NSE", 442, "MIDCPNIFTY", "Nifty Midcap Select"),
    ("NSE", 5024, "GIFTNIFTY", "Gift Nifty"),
    ("BSE", 51, "SENSEX", "Sensex"),
    ("BSE", 65, "BSE100", "BSE 100"),
    ("BSE", 69, "BANKEX", "BSE BANKEX"),
    ("BSE", 75, "METAL", "BSE Metals"),
    ("BSE", 83, "SNSX50", "BSE Sensex 50"),
    ("BSE", 99, "CAPINS", "BSE Capital Markets & Insurance"),
    ("BSE", 846, "CAPINS", "BSE Capital Goods Industrial Solutions"),
)
_INDEX_COUNT = 191

_SHARES_KNOWN = (
    # symbol, NSE id, BSE id, company, name, ISIN, price, tick size in paise
    ("RELIANCE", 2885, 500325, "RELIANCE INDUSTRIES LTD", "Reliance Industries", "INE002A01018", 1315, 10),
    ("HDFCBANK", 1333, 500180, "HDFC BANK LTD", "HDFC Bank", "INE040A01034", 795, 5),
    ("ICICIBANK", 4963, 532174, "ICICI BANK LTD.", "ICICI Bank", "INE090A01021", 1351, 10),
    ("TCS", 11536, 532540, "TATA CONSULTANCY SERV LT", "Tata Consultancy Services", "INE467B01029", 2473, 10),
    ("INFY", 1594, 500209, "INFOSYS LIMITED", "Infosys", "INE009A01021", 1277, 10),
    ("SBIN", 3045, 500112, "STATE BANK OF INDIA", "State Bank of India", "INE062A01020", 1064, 5),
    ("BHARTIARTL", 10604, 532454, "BHARTI AIRTEL LIMITED", "Bharti Airtel", "INE397D01024", 1871, 10),
    ("ITC", 1660, 500875, "ITC LTD", "ITC", "INE154A01025", 299, 5),
    ("LT", 11483, 500510, "LARSEN & TOUBRO LTD.", "Larsen & Toubro", "INE018A01030", 3954, 10),
    ("AXISBANK", 5900, 532215, "AXIS BANK LIMITED", "Axis Bank", "INE238A01034", 1354, 10),
    ("KOTAKBANK", 1922, 500247, "KOTAK MAHINDRA BANK LTD", "Kotak Bank", "INE237A01036", 372, 5),
    ("HINDUNILVR", 1394, 500696, "HINDUSTAN UNILEVER LTD.", "Hindustan Unilever", "INE030A01027", 2127, 10),
    ("BAJFINANCE", 317, 500034, "BAJAJ FINANCE LIMITED", "Bajaj Finance", "INE296A01032", 899, 5),
    ("MARUTI", 10999, 532500, "MARUTI SUZUKI INDIA LTD.", "Maruti Suzuki", "INE585B01010", 13076, 100),
    ("M&M", 2031, 500520, "MAHINDRA & MAHINDRA LTD", "Mahindra & Mahindra", "INE101A01026", 3220, 10),
    ("SUNPHARMA", 3351, 524715, "SUN PHARMACEUTICAL IND L", "Sun Pharmaceutical", "INE044A01036", 1652, 10),
    ("TITAN", 3506, 500114, "TITAN COMPANY LIMITED", "Titan", "INE280A01028", 4439, 10),
    ("ADANIENT", 25, 512599, "ADANI ENTERPRISES LIMITED", "Adani Enterprises", "INE423A01024", 2129, 10),
    ("TATASTEEL", 3499, 500470, "TATA STEEL LIMITED", "Tata Steel", "INE081A01020", 206, 1),
    ("BAJAJ-AUTO", 16669, 532977, "BAJAJ AUTO LIMITED", "Bajaj Auto", "INE917I01010", 9816, 50),
    ("WIPRO", 3787, 507685, "WIPRO LTD", "Wipro", "INE075A01022", 203, 1),
    ("DRREDDY", 881, 500124, "DR. REDDY S LABORATORIES", "Dr Reddys Laboratories", "INE089A01031", 1236, 10),
    ("ABB", 13, 500002, "ABB INDIA LIMITED", "ABB", "INE117A01022", 6828, 50),
    ("ELECTCAST", 928, 500128, "ELECTROSTEEL CASTINGS LTD", "Electrosteel Castings", "INE086A01029", 82, 1),
)

_TEST_SCRIPS = 22
#: Stocks with futures and options.
_FNO_STOCKS = 190

_SYLLABLES = (
    *("RA", "VI", "KA", "MO", "TI", "NA", "SU", "PRA", "DE", "LO", "GI", "BHA", "JA", "CHA", "MI"),
    *("YA", "HI", "TO", "PU", "SHA", "RO", "NI", "KO", "DU", "LA", "MA", "SA", "TE", "VA", "BI"),
)
_TRADES = ("FINANCE LIMITED", "TEXTILES LTD", "STEEL LTD.", "PHARMA LTD", "INFRA LIMITED", "FOODS LTD", "TECH LIMITED")
_STATES = ("MH", "TN", "GJ", "RJ", "UP", "KA", "AP", "WB", "HR", "KL")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_TUESDAY, _THURSDAY, _FRIDAY = 1, 3, 4

#: Strikes of one chain at most.
_MAX_STRIKES = 300


@dataclass(frozen=True, slots=True)
class _Underlying:
    symbol: str
    security_id: int
    """The exchange's id, which for an index is not the one in segment I."""
    spot: float
    step: float
    """Between strikes, rupees."""
    lot: int
    tick: str
    """Paise."""
    kind: Literal["IDX", "STK", "COM", "CUR"]
    expiries: Sequence[date]
    weight: float = 1.0
    """How many strikes are listed, against others."""


def write_synthetic_master(
    path: Path,
    rows: int = 228_000,
    *,
    on: date,
    seed: int = 0,
    layout: Literal["compact", "detailed"] = "detailed",
) -> None:
    """Write a scrip master of `rows` rows as it might be published on a day: derivatives expire after it.

    The same arguments give the same bytes. Raises ValueError for fewer rows than `MIN_ROWS`, and more than `MAX_ROWS`.
    """
    if not MIN_ROWS <= rows <= MAX_ROWS:
        raise ValueError(f"a scrip master of {rows} rows cannot be made; {MIN_ROWS} to {MAX_ROWS} can")
    rng = np.random.default_rng(seed)
    counts = {place: int((rows - _INDEX_COUNT) * share) for place, share in _SHARES.items()}
    names = _invented_symbols(rng)
    nse = _equities(rng, "NSE", counts["NSE E"], names)
    bse = _equities(rng, "BSE", counts["BSE E"], names)
    stocks = nse[(nse["series"] == "EQ") & (nse["kind"] == "ES") & (nse["symbol"] != "ELECTCAST")].head(_FNO_STOCKS)
    nse_fno = _derivatives(rng, "NSE D", counts["NSE D"], 35_000, [*_nse_indices(on), *_stocks(stocks, on, _TUESDAY)])
    bse_fno = _derivatives(rng, "BSE D", counts["BSE D"], 800_000, [*_bse_indices(on), *_stocks(stocks, on, _THURSDAY)])
    mcx = _derivatives(rng, "MCX M", counts["MCX M"], 430_000, _commodities(on))
    nse_currency = _derivatives(rng, "NSE C", counts["NSE C"], 1_000, _currencies(on))
    bse_currency = _derivatives(rng, "BSE C", counts["BSE C"], 1_020_000, _currencies(on))
    parts = [nse, bse, _indices(), nse_fno, bse_fno, mcx, nse_currency, bse_currency]
    # NSE's commodities take their ids from the same range as its futures and options.
    rest = rows - sum(map(len, parts))
    parts.append(_derivatives(rng, "NSE M", rest, 35_000, _commodities(on)))
    facts = pd.concat(parts, ignore_index=True)
    columns = _compact(facts) if layout == "compact" else _detailed(facts)
    lines = csv_lines(columns)
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        file.write(",".join(columns).replace("#", "") + "\n")
        file.write("\n".join(lines))
        file.write("\n")


def _invented_symbols(rng: np.random.Generator) -> list[str]:
    symbols = np.array(["".join(parts) for parts in product(_SYLLABLES, repeat=3)], object)
    rng.shuffle(symbols)
    return list(symbols)


def _indices() -> pd.DataFrame:
    used = {security_id for _, security_id, _, _ in _INDICES}
    free = [number for number in range(1, 500) if number not in used][: _INDEX_COUNT - len(_INDICES)]
    rows = [*_INDICES, *(("NSE", i, f"NIFTY THEME {i}", f"Nifty Theme {i}") for i in free)]
    exchange, security_id, symbol, name = zip(*rows, strict=True)
    return pd.DataFrame(
        {
            "exchange": exchange,
            "segment": "I",
            "security_id": security_id,
            "isin": "NA",
            "instrument": "INDEX",
            "underlying_id": [str(i) for i in security_id],
            "underlying": symbol,
            "symbol": symbol,
            "company": symbol,
            "name": name,
            "kind": "INDEX",
            "series": "NA",
            "lot": "1",
            "expiry": "0001-01-01",
            "strike": "",
            "option_type": "XX",
            "tick": [
                "0" if s == "GIFTNIFTY" else "0.05" if e == "NSE" else "0.01"
                for e, s in zip(exchange, symbol, strict=True)
            ],
            "flag": "N",
            "price": 0.0,
        }
    )


def _equities(rng: np.random.Generator, exchange: str, count: int, names: list[str]) -> pd.DataFrame:
    nse = exchange == "NSE"
    known: list[tuple[Any, ...]] = [
        (symbol, nse_id if nse else bse_id, company, name, isin, "ES", "EQ" if nse else "A", price, tick)
        for symbol, nse_id, bse_id, company, name, isin, price, tick in _SHARES_KNOWN
    ]
    # Symbols are not unique: an index is called METAL too, and NSE lists two instruments called ELECTCAST.
    etf = ("MIRAEAMC - METAL", "Mirae Asset Nifty Metal ETF", "INF769K01LY7", "ETF")
    known.append(("METAL", 25744, *etf, "EQ", 12, 1) if nse else ("METAL", 544268, *etf, "B", 12, 1))
    if nse:
        warrant = ("ELECTCAST WARRANTS", "Electrosteel Castings - Warrant", "INE086A13016", "CB", "W1")
        known.append(("ELECTCAST", 18116, *warrant, 3, 1))
        for i in range(_TEST_SCRIPS):
            test = f"{i:02d}1NSETEST"
            known.append((test, 14747 + 2 * i, test, test, f"DUMMYSAN{i:03d}", "Other", "EQ", 10, 5))
    used = [row[1] for row in known]
    invented = count - len(known)
    pool = np.concatenate([np.arange(1, 30_000), np.arange(750_000, 765_000)]) if nse else np.arange(500_000, 545_000)
    ids = np.sort(rng.choice(np.setdiff1d(pool, used), invented, replace=False))

    # Nearly half is debt. A company's symbol is the same on both exchanges.
    debt = rng.random(invented) < 0.45
    company_of = np.cumsum(~debt) - 1
    rate, year = rng.integers(600, 999, invented), rng.integers(27, 55, invented)
    state = rng.integers(0, len(_STATES), invented)
    trade = rng.integers(0, len(_TRADES), invented)
    comma = rng.random(invented) < 0.005
    price = np.where(debt, 100.0, np.round(np.exp(rng.normal(5.5, 1.3, invented)) + 1, 2))
    series = np.where(rng.random(invented) < 0.8, "EQ", "SM") if nse else rng.choice(["A", "B", "X", "XT"], invented)
    facts: tuple[Any, ...]
    for i in range(invented):
        if debt[i]:
            symbol = f"{rate[i]}{_STATES[state[i]]}{year[i]}"
            bond = f"SDL {_STATES[state[i]]} {rate[i] / 100:.2f}% 20{year[i]}"
            facts = (bond, bond, f"IN{i:08d}{year[i]}", "DBT", "SG" if nse else "G", price[i], 1)
        else:
            symbol = names[company_of[i]]
            company = f"{symbol}{', SONS &' if comma[i] else ''} {_TRADES[trade[i]]}"
            facts = (company, symbol.title(), f"INE{company_of[i]:06d}010", "ES", str(series[i]), price[i], 5)
        known.append((symbol, ids[i], *facts))
    symbols, security_ids, companies, titles, isins, kinds, all_series, prices, ticks = zip(*known, strict=True)
    return pd.DataFrame(
        {
            "exchange": exchange,
            "segment": "E",
            "security_id": security_ids,
            "isin": isins,
            "instrument": "EQUITY",
            "underlying_id": "",
            "underlying": symbols,
            "symbol": symbols,
            "company": companies,
            "name": titles,
            "kind": kinds,
            "series": all_series,
            "lot": "1.0",
            "expiry": "",
            "strike": "",
            "option_type": "",
            "tick": [f"{t:.4f}" for t in ticks],
            "flag": "NA",
            "price": prices,
        }
    )


def _nse_indices(on: date) -> list[_Underlying]:
    weekly, monthly = _weekly(on, _TUESDAY, 6, 5), _weekly(on, _TUESDAY, 0, 4)
    return [
        _Underlying("NIFTY", 26000, 24_000, 50, 65, "5.0000", "IDX", weekly, 3),
        _Underlying("BANKNIFTY", 26009, 55_000, 100, 30, "5.0000", "IDX", monthly, 3),
        _Underlying("FINNIFTY", 26037, 26_000, 50, 60, "5.0000", "IDX", monthly, 2),
        _Underlying("MIDCPNIFTY", 26074, 13_000, 25, 120, "5.0000", "IDX", monthly, 2),
        _Underlying("NIFTYNXT50", 26013, 68_000, 100, 25, "5.0000", "IDX", monthly, 2),
        _Underlying("011NSETEST", 14747, 100, 1, 100, "5.0000", "STK", monthly[:1], 0.1),
    ]


def _bse_indices(on: date) -> list[_Underlying]:
    weekly, monthly = _weekly(on, _THURSDAY, 6, 5), _weekly(on, _THURSDAY, 0, 4)
    return [
        _Underlying("SENSEX", 1, 80_000, 100, 20, "5.0000", "IDX", weekly, 3),
        _Underlying("BANKEX", 12, 62_000, 100, 30, "5.0000", "IDX", monthly, 2),
    ]


def _stocks(equities: pd.DataFrame, on: date, weekday: int) -> list[_Underlying]:
    monthly = _weekly(on, weekday, 0, 3)
    return [
        _Underlying(
            symbol,
            security_id,
            price,
            _step(price),
            max(25, round(500_000 / price / 25) * 25),
            "5.0000",
            "STK",
            monthly,
        )
        for symbol, security_id, price in zip(
            equities["symbol"], equities["security_id"], equities["price"], strict=True
        )
    ]


def _commodities(on: date) -> list[_Underlying]:
    rows = (
        ("CRUDEOIL", 294, 6_000, 50, "100.0000", 19),
        ("CRUDEOILM", 401, 6_000, 50, "100.0000", 19),
        ("NATURALGAS", 401, 300, 5, "10.0000", 25),
        ("NATGASMINI", 403, 300, 5, "10.0000", 25),
        ("GOLD", 114, 120_000, 500, "100.0000", 5),
        ("GOLDM", 117, 120_000, 500, "100.0000", 5),
        ("SILVER", 229, 150_000, 500, "100.0000", 4),
        ("SILVERM", 230, 150_000, 500, "100.0000", 27),
        ("COPPER", 71, 1_000, 5, "5.0000", 28),
        ("ZINC", 72, 300, 2.5, "5.0000", 28),
    )
    return [
        _Underlying(symbol, number, spot, step, 1, tick, "COM", _monthly(on, day, 5))
        for symbol, number, spot, step, tick, day in rows
    ]


def _currencies(on: date) -> list[_Underlying]:
    expiries = _weekly(on, _FRIDAY, 8, 10)
    rows = (("USDINR", 600, 88.25), ("EURINR", 601, 102.75), ("GBPINR", 602, 117.5), ("JPYINR", 603, 58.25))
    return [_Underlying(symbol, number, spot, 0.25, 1, "0.2500", "CUR", expiries) for symbol, number, spot in rows]


def _step(price: float) -> float:
    """The listed step nearest to 1 % of the price."""
    steps = np.array([0.5, 1, 2.5, 5, 10, 20, 50, 100])
    return float(steps[np.abs(np.log(steps / (price / 100))).argmin()])


def _weekly(on: date, weekday: int, weeks: int, months: int) -> list[date]:
    """The next weeks' expiries, and the last such weekday of the next months, all after the day."""
    first = on + timedelta((weekday - on.weekday() - 1) % 7 + 1)
    days = {first + timedelta(7 * week) for week in range(weeks)}
    lasts = [last for month in range(months + 1) if (last := _last_weekday(on, month, weekday)) > on]
    return sorted(days | set(lasts[:months]))


def _last_weekday(on: date, months_ahead: int, weekday: int) -> date:
    month = on.year * 12 + on.month + months_ahead
    end = date(month // 12, month % 12 + 1, 1) - timedelta(1)
    return end - timedelta((end.weekday() - weekday) % 7)


def _monthly(on: date, day: int, months: int) -> list[date]:
    """The day of each of the next months, or the Friday before where it is at the weekend, all after `on`."""
    days = []
    for ahead in range(months + 1):
        month = on.year * 12 + on.month - 1 + ahead
        expiry = date(month // 12, month % 12 + 1, day)
        days.append(expiry - timedelta(max(0, expiry.weekday() - _FRIDAY)))
    return [expiry for expiry in days if expiry > on][:months]


def _derivatives(
    rng: np.random.Generator, place: str, count: int, first_id: int, underlyings: Sequence[_Underlying]
) -> pd.DataFrame:
    """`count` futures and options, nearest expiries and nearest strikes first; fewer where no more are listed."""
    exchange, segment = place.split()
    chains = [(u, rank, expiry) for u in underlyings for rank, expiry in enumerate(u.expiries)]
    futures = [i for i, (_, rank, _) in enumerate(chains) if rank < 3]
    futures = sorted(futures, key=lambda i: chains[i][1])[: count // 5]
    if (count - len(futures)) % 2:
        futures.pop()
    pairs = (count - len(futures)) // 2

    # Every strike that may be listed, by how soon it would be.
    chain = np.repeat(np.arange(len(chains)), _MAX_STRIKES)
    nth = np.tile(np.arange(_MAX_STRIKES), len(chains))
    offset = np.where(nth % 2, nth // 2 + 1, -(nth // 2))
    step, spot, weight, rank = np.array([(u.step, u.spot, u.weight, rank) for u, rank, _ in chains]).T
    strike = (np.round(spot / step)[chain] + offset) * step[chain]
    late = (nth + 1) * (1 + 0.2 * rank[chain]) / weight[chain]
    late[strike <= 0] = np.inf
    listed = np.argsort(late, kind="stable")[:pairs]
    listed = np.sort(listed[np.isfinite(late[listed])])

    chain = np.concatenate([np.array(futures, np.int64), np.repeat(chain[listed], 2)])
    strike = np.concatenate([np.full(len(futures), np.nan), np.repeat(strike[listed], 2)])
    option_type = np.array(["XX"] * len(futures) + ["CE", "PE"] * len(listed), object)
    size = len(chain)
    ids = first_id + np.sort(rng.choice(size + size // 3, size, replace=False))
    return _derivative_rows(
        exchange, segment, [(u, expiry) for u, _, expiry in chains], chain, strike, option_type, ids
    )


def _derivative_rows(
    exchange: str,
    segment: str,
    chains: Sequence[tuple[_Underlying, date]],
    chain: NDArray[np.int64],
    strike: NDArray[np.float64],
    option_type: NDArray[Any],
    ids: NDArray[np.int64],
) -> pd.DataFrame:
    option = ~np.isnan(strike)
    commodity = segment == "M"

    def of_chain(values: Sequence[str]) -> NDArray[Any]:
        return np.array(values, object)[chain]

    def pick(options: Sequence[str], futures: Sequence[str]) -> NDArray[Any]:
        return np.where(option, of_chain(options), of_chain(futures))

    # Index and stock symbols name the month only, so that the weekly options of a month share theirs.
    dated = segment in "MC"
    months = [_MONTHS[expiry.month - 1] for _, expiry in chains]
    days = [f"{expiry.day:02d}" if dated else "" for _, expiry in chains]
    stems = [f"{u.symbol}-{d}{m}{e.year}-" for (u, e), m, d in zip(chains, months, days, strict=True)]
    unique, place = np.unique(np.nan_to_num(strike), return_inverse=True)
    number = np.array([f"{value:.12g}" for value in unique], object)[place]
    end = np.where(option, number + "-" + option_type, "FUT")
    call = np.where(option, " " + number + np.where(option_type == "CE", " CALL", " PUT"), "")
    symbol = of_chain(stems) + end
    no_strike = "0.00000" if commodity else "-0.01000"
    future_types = [f"FUT{u.kind}" for u, _ in chains]
    option_types = ["OPTFUT" if u.kind == "COM" else f"OPT{u.kind}" for u, _ in chains]
    instrument = pick(option_types, future_types)
    return pd.DataFrame(
        {
            "exchange": exchange,
            "segment": segment,
            "security_id": ids,
            "isin": "NA",
            "instrument": instrument,
            "underlying_id": of_chain([str(u.security_id) for u, _ in chains]),
            "underlying": of_chain([u.symbol for u, _ in chains]),
            "symbol": symbol,
            # Only here does the detailed layout differ: it names commodities and currencies by their underlying.
            "company": of_chain([u.symbol for u, _ in chains]) if dated else symbol,
            "name": pick(
                [f"{u.symbol} {e.day:02d} {m.upper()}" for (u, e), m in zip(chains, months, strict=True)],
                [f"{u.symbol} {m.upper()} FUT" for (u, _), m in zip(chains, months, strict=True)],
            )
            + call,
            "kind": instrument if dated else np.where(option, "OP", "FUT"),
            "series": "NA",
            "lot": of_chain([f"{u.lot}.0" for u, _ in chains]),
            "expiry": of_chain([e.isoformat() for _, e in chains]),
            "strike": np.where(option, np.array([f"{value:.5f}" for value in unique], object)[place], no_strike),
            "option_type": option_type,
            "tick": of_chain([u.tick for u, _ in chains]),
            "flag": "M",
            "price": 0.0,
        }
    )


def _compact(facts: pd.DataFrame) -> dict[str, Any]:
    segment = facts["segment"]
    index, share = segment == "I", segment == "E"
    closes = np.where(segment == "M", " 23:30:00", " 14:30:00")
    mnemonic = facts["underlying"].str.slice(0, 3) + "OPT"
    name = facts["company"].where(index | share | (segment == "M"), mnemonic.where(facts["exchange"] == "BSE", ""))
    return {
        "SEM_EXM_EXCH_ID": facts["exchange"],
        "SEM_SEGMENT": segment,
        "SEM_SMST_SECURITY_ID": facts["security_id"],
        "SEM_INSTRUMENT_NAME": facts["instrument"],
        "SEM_EXPIRY_CODE": "0",
        "SEM_TRADING_SYMBOL": facts["symbol"],
        "SEM_LOT_UNITS": facts["lot"],
        "SEM_CUSTOM_SYMBOL": facts["name"],
        "SEM_EXPIRY_DATE": facts["expiry"].where(index | share, facts["expiry"] + closes),
        "SEM_STRIKE_PRICE": facts["strike"],
        "SEM_OPTION_TYPE": facts["option_type"],
        "SEM_TICK_SIZE": facts["tick"],
        "SEM_EXPIRY_FLAG": facts["flag"].where(~index, ""),
        "SEM_EXCH_INSTRUMENT_TYPE": facts["kind"],
        "SEM_SERIES": facts["series"].where(~index, "X"),
        "SM_SYMBOL_NAME": name,
    }


def _detailed(facts: pd.DataFrame) -> dict[str, Any]:
    limits = facts["price"].round(2)
    columns: dict[str, Any] = {
        "EXCH_ID": facts["exchange"],
        "SEGMENT": facts["segment"],
        "SECURITY_ID": facts["security_id"],
        "ISIN": facts["isin"],
        "INSTRUMENT": facts["instrument"],
        "UNDERLYING_SECURITY_ID": facts["underlying_id"],
        "UNDERLYING_SYMBOL": facts["underlying"],
        "SYMBOL_NAME": facts["company"],
        "DISPLAY_NAME": facts["name"],
        "INSTRUMENT_TYPE": facts["kind"],
        "SERIES": facts["series"],
        "LOT_SIZE": facts["lot"],
        "SM_EXPIRY_DATE": facts["expiry"],
        "STRIKE_PRICE": facts["strike"],
        "OPTION_TYPE": facts["option_type"],
        "TICK_SIZE": facts["tick"],
        "EXPIRY_FLAG": facts["flag"],
    }
    columns |= dict.fromkeys(("BRACKET_FLAG", "COVER_FLAG", "ASM_GSM_FLAG"), "N")
    columns |= {"ASM_GSM_CATEGORY": "NA", "BUY_SELL_INDICATOR": "A"}
    columns |= dict.fromkeys(
        (
            "BUY_CO_MIN_MARGIN_PER",
            "BUY_CO_SL_RANGE_MAX_PERC",
            "BUY_CO_SL_RANGE_MIN_PERC",
            "BUY_BO_MIN_MARGIN_PER",
            "BUY_BO_PROFIT_RANGE_MAX_PERC",
            "BUY_BO_PROFIT_RANGE_MIN_PERC",
            "MTF_LEVERAGE",
        ),
        "0",
    )
    columns |= {
        "SM_UPPER_LIMIT": (limits * 1.1).round(2),
        "SM_LOWER_LIMIT": (limits * 0.9).round(2),
        "SM_FREEZE_QTY": "0",
        # The real file ends every line with a comma.
        "": "",
    }
    return columns


def csv_lines(columns: dict[str, Any]) -> list[str]:
    """A CSV file's lines of columns, or of one value for all; quoted where there is a comma. There is no quote."""
    lines: list[str] = pc.binary_join_element_wise(*map(_quoted, columns.values()), ",").to_pylist()
    return lines


def _quoted(values: Any) -> pa.Array | pa.Scalar:
    if isinstance(values, str):
        return pa.scalar(values)
    text = pa.Array.from_pandas(values).cast(pa.string())
    return pc.if_else(pc.match_substring(text, ","), pc.binary_join_element_wise('"', text, '"', ""), text)
