"""Tick capture for Indian markets: every byte on disk first, every hour rebuildable from those bytes.

What scripts and notebooks import is listed in `__all__`, and described in docs/python-api.md. It is loaded when it is
asked for: importing the package alone takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dhan_pipeline.errors import PipelineError
    from dhan_pipeline.research import read_candles, read_ticks
    from dhan_pipeline.settings import Settings
    from dhan_pipeline.store.instruments_cache import load_instruments_cache

__all__ = ["PipelineError", "Settings", "load_instruments_cache", "read_candles", "read_ticks"]

_MODULES = {
    "PipelineError": "errors",
    "Settings": "settings",
    "load_instruments_cache": "store.instruments_cache",
    "read_candles": "research",
    "read_ticks": "research",
}


if not TYPE_CHECKING:  # else no type checker would object to a name that there is not

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return getattr(import_module(f"dhan_pipeline.{_MODULES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
