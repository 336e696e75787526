"""Option chains of which the strikes around the price of the underlying are subscribed: which those are."""

from bisect import bisect_left
from dataclasses import dataclass
from datetime import date

from dhan_pipeline.ticks import Mode

#: The price has to be further from the strike in the middle than this share of the step to the next one before that
#: takes its place. At the midpoint, which is half, both are as near: the rest keeps them from taking turns.
_LEAVES = 0.75


@dataclass(frozen=True, slots=True)
class Chain:
    """The options of one expiry of an underlying, as a rule wants them."""

    underlying_token: int
    """Whose last price the window follows."""
    around_spot: int
    """So many strikes on each side of the one at the money."""
    mode: Mode
    expiry: date
    strikes: tuple[float, ...]
    """In rupees, in order, each once."""
    options: tuple[tuple[tuple[int, str], ...], ...]
    """Instrument token and symbol of the options of each strike."""

    def at_the_money(self, spot: float | None, before: int | None = None) -> int:
        """Index of the strike that is at the money; `before` the one that was. Without a price, the middle one."""
        if spot is None:
            return (len(self.strikes) - 1) // 2
        above = min(bisect_left(self.strikes, spot), len(self.strikes) - 1)
        nearest = min((max(above - 1, 0), above), key=lambda at: abs(self.strikes[at] - spot))
        if before is None or not 0 <= before < len(self.strikes) or nearest == before:
            return nearest
        next_one = before + (1 if nearest > before else -1)
        step = abs(self.strikes[next_one] - self.strikes[before])
        return before if abs(spot - self.strikes[before]) <= _LEAVES * step else nearest

    def window(self, centre: int) -> list[tuple[int, str]]:
        """Instrument tokens and symbols of the options around a strike, the nearest first."""
        first, last = max(centre - self.around_spot, 0), min(centre + self.around_spot, len(self.strikes) - 1)
        order = sorted(range(first, last + 1), key=lambda at: abs(at - centre))
        return [option for at in order for option in self.options[at]]
