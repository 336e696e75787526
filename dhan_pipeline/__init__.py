"""Tick capture for Indian markets: every byte on disk first, every hour rebuildable from those bytes."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dhan_pipeline.research import read_candles, read_ticks

__all__ = ["read_candles", "read_ticks"]


def __getattr__(name: str) -> Any:
    """What research asks for, loaded when it does."""
    if name in __all__:
        from dhan_pipeline import research

        return getattr(research, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
