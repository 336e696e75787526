import json

from hypothesis import given
from hypothesis import strategies as st

from dhan_pipeline.feeds.kite.explain import explain
from dhan_pipeline_tests.feeds.kite.packed import HEARTBEAT, NIFTY, USDINR, message, pack

LTP = bytes.fromhex("000b4501 0001f9aa")


def test_every_field_of_a_message_with_offset_value_and_meaning() -> None:
    assert explain(bytes.fromhex("0001 0008") + LTP) == [
        {
            "kind": "count",
            "offset": 0,
            "size": 2,
            "error": None,
            "rows": [{"offset": 0, "field": "packets", "raw": 1, "meaning": "1 packets follow"}],
        },
        {
            "kind": "ltp",
            "offset": 2,
            "size": 10,
            "error": None,
            "rows": [
                {"offset": 2, "field": "length", "raw": 8, "meaning": "8 bytes: ltp"},
                {"offset": 4, "field": "instrument_token", "raw": 738561, "meaning": "NSE, exchange token 2885"},
                {"offset": 8, "field": "last_price", "raw": 129_450, "meaning": "1294.50 rupees"},
            ],
        },
    ]


def test_an_index_says_its_change() -> None:
    packet = explain(message(pack(32, NIFTY, last_price=928_139, change=-2_917, exchange_timestamp=1_625_461_887)))[1]
    meanings = {row["field"]: row["meaning"] for row in packet["rows"]}
    assert packet["kind"] == "index full"
    assert meanings["instrument_token"] == "INDICES, exchange token 1001"
    assert meanings["last_price"] == "9281.39 rupees"
    assert meanings["change"] == "-29.17 rupees"
    assert meanings["exchange_timestamp"] == "2021-07-05 10:41:27 IST"


def test_levels_of_depth_are_numbered_by_side() -> None:
    full = pack(184, USDINR, last_price=831_225_000)[:64] + b"".join(
        number.to_bytes(4, "big") + (831_225_000 + number).to_bytes(4, "big") + b"\0\3\0\0" for number in range(10)
    )
    packet = explain(message(full))[1]
    rows = {row["field"]: row for row in packet["rows"]}
    assert rows["bid[4].quantity"] == {"offset": 116, "field": "bid[4].quantity", "raw": 4, "meaning": "4 units"}
    assert rows["ask[0].price"] == {
        "offset": 132,
        "field": "ask[0].price",
        "raw": 831_225_005,
        "meaning": "83.1225 rupees",
    }
    assert rows["ask[4].orders"]["meaning"] == "3 orders"
    assert rows["day_open"]["meaning"] == "no price"
    assert rows["last_trade_time"]["meaning"] == "never"


def test_packets_have_offsets_in_the_message() -> None:
    packets = explain(message(pack(44), LTP))
    assert [(packet["kind"], packet["offset"], packet["size"]) for packet in packets] == [
        ("count", 0, 2),
        ("quote", 2, 46),
        ("ltp", 48, 10),
    ]


def test_what_cannot_be_read_is_shown_with_its_reason() -> None:
    _, ltp, torn = explain(message(LTP, pack(184))[:-180])
    assert ltp["error"] is None
    assert torn == {
        "kind": "unknown",
        "offset": 12,
        "size": 6,
        "error": "torn packet: 4 of 184 bytes",
        "rows": [{"offset": 12, "field": "rest", "raw": "00b8000b4501", "meaning": "6 bytes, not known"}],
    }


def test_packets_that_did_not_come_are_told_of() -> None:
    assert explain(message(LTP, count=3))[-1] == {
        "kind": "unknown",
        "offset": 12,
        "size": 0,
        "error": "3 packets announced, 1 came",
        "rows": [],
    }


def test_impossible_values_are_called_so() -> None:
    rows = explain(message(pack(8, 0x0A, last_price=-1)))[1]["rows"]
    assert [row["meaning"] for row in rows[1:]] == ["an unknown segment, exchange token 0", "impossible price"]


def test_a_heartbeat() -> None:
    (packet,) = explain(HEARTBEAT)
    assert (packet["kind"], packet["size"], packet["error"]) == ("heartbeat", 1, None)


def test_nothing_in_nothing() -> None:
    assert explain(b"") == []


@given(st.binary(max_size=400))
def test_any_bytes_are_explained_in_json(data: bytes) -> None:
    packets = json.loads(json.dumps(explain(data), allow_nan=False))
    assert sum(packet["size"] for packet in packets) == len(data)
