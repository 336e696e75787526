import json

import pytest

from dhan_pipeline.feeds.kite.requests import subscribe_messages, unsubscribe_messages
from dhan_pipeline.instruments import KiteSegment, generate_instrument_token, make_kite_token
from dhan_pipeline.ticks import Mode

RELIANCE, NIFTY = 738561, 256265


def tokens(count: int) -> list[int]:
    return [make_kite_token(KiteSegment.NFO, 40_000 + number) for number in range(count)]


def test_a_mode_follows_each_subscription():
    assert subscribe_messages({RELIANCE: Mode.FULL, NIFTY: Mode.TICKER}) == [
        '{"a":"subscribe","v":[256265]}',
        '{"a":"mode","v":["ltp",[256265]]}',
        '{"a":"subscribe","v":[738561]}',
        '{"a":"mode","v":["full",[738561]]}',
    ]


def test_a_message_names_200_instruments_at_most():
    messages = [json.loads(message) for message in subscribe_messages(dict.fromkeys(tokens(450), Mode.QUOTE))]
    assert [message["a"] for message in messages] == ["subscribe", "mode"] * 3
    subscribed = [message["v"] for message in messages[::2]]
    assert [len(part) for part in subscribed] == [200, 200, 50]
    assert [token for part in subscribed for token in part] == tokens(450)
    assert [message["v"] for message in messages[1::2]] == [["quote", part] for part in subscribed]


def test_instruments_are_unsubscribed_whatever_their_mode():
    assert unsubscribe_messages({RELIANCE: Mode.FULL, NIFTY: Mode.TICKER}) == [
        '{"a":"unsubscribe","v":[738561,256265]}'
    ]
    assert [len(json.loads(message)["v"]) for message in unsubscribe_messages(tokens(201))] == [200, 1]


def test_nothing_is_asked_for_without_instruments():
    assert subscribe_messages({}) == unsubscribe_messages([]) == []


@pytest.mark.parametrize("token", [generate_instrument_token("NSE_EQ", 2885), -1, 2885 << 8 | 10])
def test_a_token_that_is_not_kites_is_refused(token):
    with pytest.raises(ValueError, match=r"not a"):
        subscribe_messages({token: Mode.FULL})
