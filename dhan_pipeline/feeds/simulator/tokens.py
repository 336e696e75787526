"""Access tokens that the simulated brokers take: like Dhan's JWT, and like Kite's opaque word. Nobody signed them."""

import base64
import json
from itertools import count
from typing import Any

from dhan_pipeline.clock import Clock
from dhan_pipeline.sessions import IST_OFFSET_S

#: The account of the simulated broker, for practice and for tests; with the secret its authenticator was set up.
CLIENT_ID = "1000000001"
PIN = "123456"
TOTP_SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"  # noqa: S105 - it opens nothing

#: The app at the simulated Kite.
API_KEY = "simulated0kite01"
API_SECRET = "simulated0kite0secret00000000001"  # noqa: S105 - it opens nothing

_numbers = count(1)


def make_token(
    client_id: str, *, expires_in: float = 86_400.0, clock: Clock | None = None, consumer: str = "SELF"
) -> str:
    """An access token for `client_id`. It expires in so many seconds of the clock, by default the machine's.

    `consumer`: SELF as from the web site, which can be renewed, or APP as made with PIN and TOTP.
    """
    now_s = (clock or Clock()).now_ns() // 1_000_000_000
    claims = {
        "iss": "dhan",
        "jti": next(_numbers),
        "exp": int(now_s + expires_in),
        "tokenConsumerType": consumer,
        "dhanClientId": client_id,
    }
    parts = [json.dumps(part).encode() for part in ({"typ": "JWT", "alg": "HS512"}, claims)] + [b"not signed"]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def read_claims(token: str) -> dict[str, Any]:
    """What a token says, unverified. Raises ValueError where it is none."""
    try:
        _, payload, _ = token.split(".")
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return {**claims, "exp": int(claims["exp"]), "dhanClientId": str(claims["dhanClientId"])}
    except (KeyError, TypeError, ValueError):
        raise ValueError("not an access token") from None


def check_token(client_id: str, token: str, clock: Clock) -> int | None:
    """The disconnect code that these credentials earn: 807 expired, 808 another client's, 809 no token; else None."""
    try:
        claims = read_claims(token)
    except ValueError:
        return 809
    if claims["exp"] * 1_000_000_000 <= clock.now_ns():
        return 807
    return None if claims["dhanClientId"] == client_id else 808


def make_kite_access_token(*, expires_in: float = 86_400.0, clock: Clock | None = None) -> str:
    """An access token of Kite's, which expires in so many seconds of the clock, by default the machine's.

    Unlike a real one, it says when that is; nobody should read it.
    """
    expires_at = (clock or Clock()).now_ns() // 1_000_000_000 + int(expires_in)
    return f"kite{expires_at:014x}{next(_numbers):014x}"


def check_kite_access_token(token: str, clock: Clock) -> bool:
    """Whether it is a token of Kite's whose time is not over."""
    try:
        return len(token) == 32 and token[:4] == "kite" and int(token[4:18], 16) * 1_000_000_000 > clock.now_ns()
    except ValueError:
        return False


#: The app of the simulated broker that speaks Kite's protocol.
API_KEY = "practicekey00001"
API_SECRET = "practicesecret00000000000000001"  # noqa: S105 - it opens nothing

#: Kite's tokens die at this time of the day (IST).
_DIES_AT_S = 6 * 3600
_DAY_S = 86_400


def make_kite_access_token(*, expires_in: float | None = None, clock: Clock | None = None) -> str:
    """An access token of the app: 32 characters, of which the first ten say when it expires.

    Without `expires_in`, in seconds of the clock, that is at the next 06:00 IST.
    """
    now_s = (clock or Clock()).now_ns() // 1_000_000_000
    if expires_in is None:
        since_six_s = (now_s + IST_OFFSET_S - _DIES_AT_S) % _DAY_S
        expires_in = _DAY_S - since_six_s
    return f"{int(now_s + expires_in):010d}{next(_numbers):022x}"


def check_kite_access_token(token: str, clock: Clock) -> bool:
    """Whether the token is one of ours, and its time is not over."""
    expires_s = token[:10]
    return len(token) == 32 and expires_s.isdecimal() and int(expires_s) * 1_000_000_000 > clock.now_ns()
