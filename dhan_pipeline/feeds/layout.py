"""How a packet is laid out on the wire: its fields in order, as a struct and as a NumPy dtype."""

import struct
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np


class Field(NamedTuple):
    """One number on the wire. `format` is its character in `struct` and NumPy alike."""

    name: str
    format: str


class Layout:
    """Fields of a packet in order, then `levels` repetitions of `level`, which begin at `levels_start`. Packed."""

    def __init__(
        self,
        name: str,
        fields: Iterable[Field],
        levels: int = 0,
        level: "Layout | None" = None,
        order: Literal["<", ">"] = "<",
    ) -> None:
        """`order`: of the bytes, little endian or big."""
        self.name = name
        self.fields = tuple(fields)
        self.levels = levels
        self.level = level
        self.order = order
        body = "".join(field.format for field in self.fields)
        columns: list[Any] = [(field.name, order + field.format) for field in self.fields]
        if level is not None:
            body += level.struct.format[1:] * levels
            columns.append(("depth", level.dtype, (levels,)))
        self.levels_start = struct.calcsize(order + body[: len(self.fields)])
        self.struct: struct.Struct = struct.Struct(order + body)
        self.dtype: np.dtype[np.void] = np.dtype(columns)
        self.size = self.struct.size
