import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhan_pipeline.feeds.dhan.explain import explain

TICKER = bytes.fromhex("02 1000 01 450b0000 00d0a144 398a746a")


def test_every_field_of_a_packet_with_offset_value_and_meaning() -> None:
    assert explain(TICKER) == [
        {
            "kind": "ticker",
            "offset": 0,
            "size": 16,
            "error": None,
            "rows": [
                {"offset": 0, "field": "response_code", "raw": 2, "meaning": "ticker"},
                {"offset": 1, "field": "message_length", "raw": 16, "meaning": "16 bytes"},
                {"offset": 3, "field": "exchange_segment", "raw": 1, "meaning": "NSE_EQ"},
                {"offset": 4, "field": "security_id", "raw": 2885, "meaning": "security id"},
                {"offset": 8, "field": "last_price", "raw": 1294.5, "meaning": "1294.50 rupees"},
                {"offset": 12, "field": "last_trade_time", "raw": 1786022457, "meaning": "2026-08-06 13:20:57 IST"},
            ],
        }
    ]


def test_levels_of_depth_are_numbered() -> None:
    full = struct.pack("<BHBI", 8, 162, 3, 5) + bytes(54) + struct.pack("<IIHHff", 75, 150, 1, 2, 83.1225, 83.125) * 5
    (packet,) = explain(full)
    rows = {row["field"]: row for row in packet["rows"]}
    assert rows["depth[4].bid_price"] | {"raw": 0} == {
        "offset": 154,
        "field": "depth[4].bid_price",
        "raw": 0,
        "meaning": "83.1225 rupees",
    }
    assert rows["depth[0].ask_orders"]["meaning"] == "2 orders"
    assert rows["last_price"]["meaning"] == "no price"
    assert rows["last_trade_time"]["meaning"] == "never traded"


def test_stacked_packets_have_offsets_in_the_frame() -> None:
    packets = explain(TICKER + bytes.fromhex("05 0c00 02 4dc00000 999fd500"))
    assert [(packet["kind"], packet["offset"]) for packet in packets] == [("ticker", 0), ("open interest", 16)]
    assert packets[1]["rows"][-1] == {"offset": 24, "field": "oi", "raw": 14_000_025, "meaning": "14000025 units"}


def test_what_cannot_be_read_is_shown_with_its_reason() -> None:
    (packet,) = explain(TICKER[:12])
    assert packet["kind"] == "ticker"
    assert packet["error"] == "torn ticker packet: 12 of 16 bytes"
    assert packet["rows"][-1] == {"offset": 8, "field": "rest", "raw": "00d0a144", "meaning": "4 bytes, not known"}


def test_bytes_that_a_packet_grew_by_are_shown() -> None:
    (packet,) = explain(bytes.fromhex("05 0e00 02 4dc00000 999fd500 beef"))
    assert packet["error"] is None
    assert packet["rows"][-1] == {"offset": 12, "field": "rest", "raw": "beef", "meaning": "2 bytes, not known"}


def test_a_disconnect_says_why() -> None:
    (packet,) = explain(bytes.fromhex("32 0a00 00 00000000 2703"))
    assert packet["rows"][-1]["meaning"] == "access token expired"


@pytest.mark.parametrize(("code", "kind"), [(41, "bid"), (51, "ask")])
def test_frames_of_the_depth_feeds(code: int, kind: str) -> None:
    frame = struct.pack("<HBBII", 332, code, 1, 1333, 9) + struct.pack("<dII", 1650.25, 120, 3) * 20
    (packet,) = explain(frame)
    assert (packet["kind"], packet["error"], len(packet["rows"])) == (kind, None, 5 + 60)
    assert packet["rows"][4]["field"] == "sequence"
    assert packet["rows"][5] == {
        "offset": 12,
        "field": f"{kind}[0].price",
        "raw": 1650.25,
        "meaning": "1650.25 rupees",
    }
    (short,) = explain(struct.pack("<HBBII", 44, code, 1, 1333, 2) + frame[12:44])
    assert (short["error"], len(short["rows"])) == (None, 5 + 6)


def test_a_disconnect_of_the_depth_feeds() -> None:
    (packet,) = explain(bytes.fromhex("0e00 32 00 00000000 00000000 2503"))
    assert packet["kind"] == "disconnect"
    assert packet["rows"][-1] == {
        "offset": 12,
        "field": "reason_code",
        "raw": 805,
        "meaning": "too many requests or connections",
    }


def test_a_disconnect_of_the_depth_feeds_with_its_reason_in_the_other_place() -> None:
    (packet,) = explain(bytes.fromhex("0c00 32 00 00000000 27030000"))
    assert [(row["offset"], row["field"]) for row in packet["rows"][-2:]] == [(8, "reason_code"), (10, "rest")]
    assert packet["rows"][-2]["meaning"] == "access token expired"


def test_a_disconnect_of_the_depth_feeds_without_a_reason_shows_none() -> None:
    (packet,) = explain(bytes.fromhex("0c00 32 00 00000000 00000000"))
    assert [row["field"] for row in packet["rows"]][-2:] == ["security_id", "rows"]


@given(st.binary(max_size=400) | st.binary(max_size=350).map(lambda body: struct.pack("<HB", 332, 41) + body))
def test_any_bytes_are_explained_in_json(frame: bytes) -> None:
    packets = json.loads(json.dumps(explain(frame), allow_nan=False))
    assert sum(packet["size"] for packet in packets) == len(frame)
