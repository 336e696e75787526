"""Tick capture for Indian markets: every byte on disk first, every hour rebuildable from those bytes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dhan_pipeline.research import read_candles, read_ticks
    from dhan_pipeline.store.instruments_cache import load_instruments_cache

__all__ = ["load_instruments_cache", "read_candles", "read_ticks"]

_MODULES = {
    "load_instruments_cache": "store.instruments_cache",
    "read_candles": "research",
    "read_ticks": "research",
}


def __getattr__(name: str) -> Any:
    """What scripts and research ask for, loaded when they do."""
    if name in _MODULES:
        return getattr(import_module(f"dhan_pipeline.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
