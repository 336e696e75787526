"""A packet to a model: one `struct.unpack` and one Pydantic model, with one more for each level of depth."""

from benchmarks.baseline.models import DepthLevel, DhanTick
from dhan_pipeline.feeds.dhan.wire import DEPTH_LEVEL, LAYOUTS

_NAMES = {code: [field.name for field in layout.fields] for code, layout in LAYOUTS.items()}
_STRUCTS = {int(code): layout.struct for code, layout in LAYOUTS.items()}
_LEVEL_NAMES = [field.name for field in DEPTH_LEVEL.fields]


def parse(packet: bytes) -> DhanTick:
    """The packet that a message holds. Raises KeyError for an unknown code and struct.error for another size."""
    code = packet[0]
    values = _STRUCTS[code].unpack(packet)
    names = _NAMES[code]
    # Not strict: the levels follow the fields.
    fields = dict(zip(names, values))  # noqa: B905
    if len(values) > len(names):
        fields["depth"] = [
            DepthLevel(**dict(zip(_LEVEL_NAMES, values[at : at + len(_LEVEL_NAMES)], strict=True)))
            for at in range(len(names), len(values), len(_LEVEL_NAMES))
        ]
    return DhanTick(**fields)
