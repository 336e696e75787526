import json

import pytest

from dhan_pipeline.feeds.dhan.requests import (
    disconnect_message,
    request_messages,
    subscribe_messages,
    unsubscribe_messages,
)
from dhan_pipeline.feeds.dhan.wire import RequestCode
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.ticks import Mode

NIFTY = generate_instrument_token("IDX_I", 13)
RELIANCE = generate_instrument_token("NSE_EQ", 2885)


def tokens(count: int) -> list[int]:
    return [generate_instrument_token("NSE_FNO", 40_000 + number) for number in range(count)]


def test_a_subscription_is_the_message_of_the_documentation():
    assert subscribe_messages({RELIANCE: Mode.FULL}) == [
        '{"RequestCode": 21, "InstrumentCount": 1, '
        '"InstrumentList": [{"ExchangeSegment": "NSE_EQ", "SecurityId": "2885"}]}'
    ]


@pytest.mark.parametrize(
    ("mode", "subscribe", "unsubscribe"), [(Mode.TICKER, 15, 16), (Mode.QUOTE, 17, 18), (Mode.FULL, 21, 22)]
)
def test_each_mode_has_its_request_codes(mode, subscribe, unsubscribe):
    assert json.loads(subscribe_messages({NIFTY: mode})[0])["RequestCode"] == subscribe
    assert json.loads(unsubscribe_messages({NIFTY: mode})[0])["RequestCode"] == unsubscribe


def test_modes_do_not_share_a_message():
    messages = [json.loads(m) for m in subscribe_messages({NIFTY: Mode.QUOTE, RELIANCE: Mode.FULL})]
    assert [(m["RequestCode"], m["InstrumentList"][0]["SecurityId"]) for m in messages] == [(17, "13"), (21, "2885")]


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [1]), (100, [100]), (101, [100, 1]), (250, [100, 100, 50])])
def test_a_message_has_at_most_100_instruments_and_says_how_many(count, sizes):
    messages = [json.loads(m) for m in subscribe_messages(dict.fromkeys(tokens(count), Mode.QUOTE))]
    assert [m["InstrumentCount"] for m in messages] == sizes
    assert [len(m["InstrumentList"]) for m in messages] == sizes
    listed = [item["SecurityId"] for m in messages for item in m["InstrumentList"]]
    assert listed == [str(40_000 + number) for number in range(count)]


def test_full_depth_is_asked_for_by_its_own_codes():
    codes = (RequestCode.SUBSCRIBE_FULL_DEPTH, RequestCode.UNSUBSCRIBE_FULL_DEPTH)
    assert [json.loads(request_messages(code, [RELIANCE])[0])["RequestCode"] for code in codes] == [23, 24]


def test_leaving_is_request_12():
    assert json.loads(disconnect_message()) == {"RequestCode": 12}


def test_a_token_of_another_broker_is_refused():
    with pytest.raises(ValueError, match="738561 is not a Dhan instrument token"):
        subscribe_messages({738561: Mode.FULL})
