"""Access tokens that the simulated brokers take: like Dhan's JWT, and like Kite's opaque word. Nobody signed them."""

import base64
import json
from itertools import count
from typing import Any

from dhan_pipeline.clock import Clock

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
