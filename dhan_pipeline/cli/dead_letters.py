"""What workers could not store, as `redrive` lists it and puts it back."""

import asyncio
import sys
from collections import Counter

from dhan_pipeline.cli.common import print_json

#: So many of the oldest are listed.
_LISTED = 100


def list_dead_letters(url: str, as_json: bool) -> None:
    """Print the oldest dead letters, a line each. Raises BrokerError."""
    from dhan_pipeline.times import to_second
    from dhan_pipeline.transport.dead_letters import dead_letters

    letters = asyncio.run(dead_letters(url, _LISTED))
    if as_json:
        for letter in letters:
            facts = {
                "lane": letter.lane,
                "bytes": len(letter.body),
                "reason": letter.reason,
                "tries": letter.tries,
                "died": letter.died.isoformat() if letter.died else None,
                "worker": letter.worker,
            }
            print_json(facts)
        return
    for letter in letters:
        died = to_second(letter.died) if letter.died else ""
        print(f"{died:<23}  lane {letter.lane}  {len(letter.body):>9,} bytes  {letter.reason}")
    if not letters:
        print("There are no dead letters.")
    elif len(letters) == _LISTED:
        print(f"These are the oldest {_LISTED}; there may be more.", file=sys.stderr)


def put_back_dead_letters(url: str) -> int:
    """Put all dead letters back into their lanes, say on standard error why they had died, and return how many."""
    from dhan_pipeline.transport.dead_letters import dead_letters, redrive_dead_letters

    async def put_back() -> int:
        reasons = Counter((letter.lane, letter.reason) for letter in await dead_letters(url, _LISTED))
        for (lane, reason), count in reasons.items():
            times = "once" if count == 1 else f"{count:,} times"
            print(f"Lane {lane}, {times}: {reason}", file=sys.stderr)
        return await redrive_dead_letters(url)

    return asyncio.run(put_back())
