"""Which error each of Dhan's disconnect codes is: https://dhanhq.co/docs/v2/annexure/#data-api-error"""

from dhan_pipeline.feeds.dhan.wire import disconnect_reason
from dhan_pipeline.feeds.errors import (
    DataPlanError,
    FeedRefusedError,
    RateLimitedError,
    TokenRefusedError,
    TooManyInstrumentsError,
)

_BY_CODE: dict[int, type[FeedRefusedError]] = {
    401: TokenRefusedError,
    403: TokenRefusedError,
    429: RateLimitedError,
    804: TooManyInstrumentsError,
    805: RateLimitedError,
    806: DataPlanError,
    807: TokenRefusedError,
    808: TokenRefusedError,
    809: TokenRefusedError,
    810: TokenRefusedError,
}


def refused(code: int, retry_after_s: float = 0.0) -> FeedRefusedError:
    """The error for a disconnect code, or for the HTTP status of a refused handshake."""
    reason = f"HTTP status {code}" if code < 600 else f"{code}, {disconnect_reason(code)}"
    return _BY_CODE.get(code, FeedRefusedError)("Dhan", code, reason, retry_after_s)
