"""Which error each HTTP status of a refused handshake is. The feed itself has no codes; it says errors in words."""

from dhan_pipeline.feeds.errors import FeedRefusedError, RateLimitedError, TokenRefusedError

_BY_STATUS: dict[int, type[FeedRefusedError]] = {
    401: TokenRefusedError,
    403: TokenRefusedError,  # what a token that is over gets
    429: RateLimitedError,
}


def refused(status: int, retry_after_s: float = 0.0) -> FeedRefusedError:
    """The error for the HTTP status of a refused handshake."""
    return _BY_STATUS.get(status, FeedRefusedError)("Kite", status, f"HTTP status {status}", retry_after_s)
