"""While a server is away: how long to wait before the next try, and what to say about it, once."""

import logging
from collections.abc import Callable

import psycopg2

from dhan_pipeline.errors import PipelineError

log = logging.getLogger(__name__)

#: Seconds before the next try, and the one after it; the last of them for ever.
RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)


def reason_of(error: Exception) -> str:
    """The first line of what an error says."""
    if isinstance(error, psycopg2.InterfaceError) and isinstance(error.__context__, psycopg2.Error):
        error = error.__context__  # the first was the loss of the connection, then came its rollback
    return str(error).strip().partition("\n")[0] or type(error).__name__


class Outage:
    """Failures in a row. Each reason is told once, until the next is another one, or all was well in between."""

    def __init__(self, warn: Callable[[str], None], sentence: str) -> None:
        """`warn` gets the sentence, and the reason after it."""
        self._warn = warn
        self._sentence = sentence
        self._failures = 0
        self._told = ""

    def again_in_s(self, error: Exception) -> float:
        """Count a failure, and say how many seconds to wait before the next try."""
        self._failures += 1
        reason = reason_of(error)
        if reason != self._told:
            self._told = reason
            if not isinstance(error, psycopg2.Error | PipelineError):
                log.error("that should not happen", exc_info=error)
            self._warn(f"{self._sentence} {reason}")
        return RETRY_S[min(self._failures, len(RETRY_S)) - 1]

    def over(self) -> None:
        """All is well."""
        self._failures, self._told = 0, ""
