"""Tables in Markdown, as the UI shows them."""

from collections.abc import Collection, Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Iterable[object]], numbers: Collection[str] = ()) -> str:
    """A table; the columns whose heads are among `numbers` are set to the right."""
    rule = "".join("---:|" if name in numbers else "---|" for name in head)
    return "\n".join([_line(head), f"|{rule}", *map(_line, rows)])


def _line(cells: Iterable[object]) -> str:
    # Words from outside may hold what ends a cell, or a line.
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", r"\|") for cell in cells) + " |"
