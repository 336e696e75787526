"""What a gap is: a time in which packets may have been missed, with what was missed, why, and how it ended."""

from dataclasses import dataclass
from enum import StrEnum


class Cause(StrEnum):
    """Why packets were missed, as `feed_gaps.cause` has it."""

    STALL = "stall"
    """The connection stood, but nothing came through it."""
    RESET = "reset"
    """The connection was lost without a word, or could not be made again."""
    SERVER = "server"
    """The server ended the connection, and said so."""
    TOKEN = "token"  # noqa: S105
    """The access token was refused, or its time was over."""
    LIMIT = "limit"
    """The broker's limits: too many requests, connections or instruments."""
    PLAN = "plan"
    """The account has no data plan."""
    RESTART = "restart"
    """The capture's process ended without having been asked to: killed, or failed."""
    HOST_DOWN = "host down"
    """The machine went down, and the capture with it."""
    DISK = "disk"
    """The journal could not be written, or what was written was damaged."""
    SUSPENDED = "suspended"
    """The process stood still: the machine slept, or a person stopped it for a while."""
    STOP = "stop"
    """The capture was asked to stop."""
    SILENT = "silent"
    """A lively instrument went silent, while others on its connection went on."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which packets may have been missed. Times are ns since the Unix epoch, UTC."""

    gap_id: int
    """When it was noticed, made unique within its capture: nothing else identifies a gap while its facts change."""
    connection: int
    """Number of the connection that missed them."""
    started_ns: int
    """The last sign of life before it: the gap begins just after."""
    cause: Cause
    detail: str = ""
    """What exactly happened, in words for a person. Never a token or a URL."""
    instruments: tuple[int, ...] | None = None
    """Instrument tokens whose packets may be missing. None in a note that changes nothing about them."""
    ended_ns: int | None = None
    """Receive time of the first packet after it; None while it lasts."""
    recovery: str = ""
    """How it ended, in words; empty while it lasts."""
