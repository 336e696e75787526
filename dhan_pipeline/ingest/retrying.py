"""What a thread does that needs a server which may be away: it tries again for ever, and says why, once."""

import logging
from collections.abc import Callable

import psycopg2
import psycopg2.errors
from psycopg2.extensions import connection

from dhan_pipeline.errors import LACKS_TABLES, PipelineError
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.engine import connect, database_url

log = logging.getLogger(__name__)

_RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)


class Patience:
    """Counts failures in a row."""

    def __init__(self, what: str, warn: Callable[[str], None]) -> None:
        """`what` is said to `warn` before the reason, when the first failure has come or the reason is another one."""
        self._what = what
        self._warn = warn
        self._failures = 0
        self.reason = ""
        """Of the last failure; empty after a success."""

    def succeeded(self) -> None:
        """The failures that come are those of something else."""
        self._failures, self.reason = 0, ""

    def failed(self, error: Exception) -> float:
        """How long to wait, in seconds, before the next try."""
        self._failures += 1
        if isinstance(error, psycopg2.InterfaceError) and isinstance(error.__context__, psycopg2.Error):
            error = error.__context__  # the first was the loss of the connection, then came its rollback
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if isinstance(error, psycopg2.errors.UndefinedTable | psycopg2.errors.UndefinedColumn):
            reason = LACKS_TABLES
        if reason != self.reason:
            self.reason = reason
            if not isinstance(error, psycopg2.Error | PipelineError):
                log.error("this should not have failed", exc_info=error)
            self._warn(f"{self._what} {reason}")
        return _RETRY_S[min(self._failures, len(_RETRY_S)) - 1]


class Database:
    """The database in use, for who connects to it again and again."""

    def __init__(self, settings: Settings, url: str) -> None:
        """`url`: where it is now. An embedded server may get another port when it is started again."""
        self._settings = settings
        self._url = url

    def connect(self) -> connection:
        """A new connection; an embedded server that has ended is started, for nobody else may be there to do it."""
        try:
            return connect(self._url)
        except psycopg2.OperationalError:
            if self._settings.database_url:
                raise
        self._url = database_url(self._settings)
        return connect(self._url)
