"""What a connection hands over, taken apart into the messages that it was sent."""


def one_by_one(payload: bytes | str, count: int) -> list[bytes | str]:
    """The messages of equal size that came as one payload."""
    if isinstance(payload, str):
        assert count == 1
        return [payload]
    size, rest = divmod(len(payload), count)
    assert not rest
    return [payload[at * size : (at + 1) * size] for at in range(count)]
