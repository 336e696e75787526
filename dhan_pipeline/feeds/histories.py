"""The bars and quotes of the settings' source."""

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.history import History
from dhan_pipeline.feeds.rest import RestPolicy
from dhan_pipeline.settings import Settings


def make_history(settings: Settings, clock: Clock, policy: RestPolicy | None = None) -> History:
    """The broker's history, of which nothing is asked yet. `policy` is for tests; its default are its limits."""
    if settings.source == "dhan":
        from dhan_pipeline.feeds.dhan.history import DhanHistory

        return DhanHistory(settings, clock, policy)
    from dhan_pipeline.feeds.kite.history import KiteHistory

    return KiteHistory(settings, clock, policy)
