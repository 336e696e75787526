import pytest

from dhan_pipeline.errors import redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("wss://feed/?version=2&token=abc&clientId=1", "wss://feed/?version=2&token=***&clientId=1"),
        ("Bearer eyJh.eyJl-_w.c2ln_-g ends", "Bearer *** ends"),
        ("{'access_token': 'abc', 'x': 1}", "{'access_token': '***', 'x': 1}"),
        ('{"totp": "123456"}', '{"totp": "***"}'),
        ("?pin=1234&totp=567890", "?pin=***&totp=***"),
        ("DHAN_TOTP_SECRET=JBSWY3DP", "DHAN_TOTP_SECRET=***"),
        ("wss://feed/?api_key=k1&access_token=abc", "wss://feed/?api_key=k1&access_token=***"),
        ("next=%3Frequest_token%3Dabc&v=3", "next=%3Frequest_token%3D***&v=3"),
        ("{'Authorization': 'token k1k1k1k1:abcdef'}", "{'Authorization': 'token k1k1k1k1:***'}"),
        ("api_key=k1&request_token=abc&checksum=def", "api_key=k1&request_token=***&checksum=***"),
        ('KITE_API_SECRET=abc {"api_secret": "abc"}', 'KITE_API_SECRET=*** {"api_secret": "***"}'),
        ("postgresql://user:pa@ss/word@host:5432/db is away", "postgresql://user:***@host:5432/db is away"),
    ],
)
def test_what_looks_like_a_secret_is_not_shown(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "Dhan does not give a token: it cannot be reached",
        "of the form postgresql://user:password@host:port/database",
        "instrument_token=1103806597957 mapping=3",
        "ws://127.0.0.1:8765 and http://127.0.0.1:8766/v2/profile",
    ],
)
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert redacted(text) == text
