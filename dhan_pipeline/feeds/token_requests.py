"""One request about an access token to a broker's REST API: to have one made, or to ask whether it is good.

No message, log line or exception holds a token, a secret or a URL with its parameters.
"""

import logging
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any

from dhan_pipeline.feeds.auth import can_be_sent
from dhan_pipeline.feeds.errors import TokenError, TokenUnjudgedError

_TIMEOUT_S = 10.0

# It logs every request with its URL, and that of a new token may have a secret in it.
logging.getLogger("httpx").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Manners:
    """How a broker answers, and what it is called."""

    broker: str
    url_variables: str
    """The settings that say where its API is."""
    code: str
    """The field of an answer that says which error it is; no other answer has it."""
    messages: tuple[str, ...]
    """The fields that may say so in words."""


def ask(manners: Manners, method: str, base_url: str, path: str, what: str, **request: Any) -> dict[str, Any]:
    """One request for `what` ("a token"), and the JSON object that answers it. Raises TokenError saying why not.

    That is TokenUnjudgedError where it is no answer of the broker's.
    """
    if not can_be_sent(request.get("headers", {})):
        raise TokenError(f"{manners.broker} does not give {what}: the access token has characters that none has.")
    problem = ""
    import httpx  # and with it 7 MB, which a capture whose token is good does without

    try:
        reply = httpx.request(method, f"{base_url.rstrip('/')}{path}", timeout=_TIMEOUT_S, **request)
        said = reply.json()
    except httpx.TimeoutException:
        problem = "it does not answer"
    except (JSONDecodeError, UnicodeDecodeError, RecursionError):
        problem = f"its answer, HTTP status {reply.status_code}, is not JSON"
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError):  # the last for "http://.com"
        is_right = "are" if " and " in manners.url_variables else "is"
        problem = f"it cannot be reached; {is_right} {manners.url_variables} right?"
    kind: type[TokenError] = TokenUnjudgedError
    if not problem:
        kind = TokenError
        if isinstance(said, dict) and reply.is_success and not said.get(manners.code):
            return said
        problem = _refusal(manners, reply.status_code, said)
    # Raised here, not where it was caught: the exceptions of the library know the URL.
    raise kind(f"{manners.broker} does not give {what}: {problem}{'' if problem[-1] == '?' else '.'}")


def _refusal(manners: Manners, status: int, said: Any) -> str:
    """Why, in the broker's words."""
    if isinstance(said, dict):
        message = next((said[name] for name in manners.messages if said.get(name)), None)
        if parts := [str(part)[:200].rstrip(".") for part in (said.get(manners.code), message) if part]:
            return " ".join(parts)
    return f"HTTP status {status}"
