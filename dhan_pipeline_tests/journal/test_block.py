import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhan_pipeline.journal.block import (
    MAX_CAPTURE,
    NUMBER_BITS,
    first_block_id,
    make_block_id,
    next_block_id,
    split_block_id,
)
from dhan_pipeline.ticks import POSITION_BITS

captures = st.integers(0, MAX_CAPTURE)
numbers = st.integers(0, 2**NUMBER_BITS - 1)


@given(captures, numbers)
def test_an_id_says_its_capture_and_number(capture: int, number: int) -> None:
    assert split_block_id(make_block_id(capture, number)) == (capture, number)


def test_the_largest_tick_id_fits_a_signed_bigint() -> None:
    largest = make_block_id(MAX_CAPTURE, 2**NUMBER_BITS - 1)
    assert (largest << POSITION_BITS | 2**POSITION_BITS - 1) == 2**63 - 1


@pytest.mark.parametrize(("capture", "number"), [(-1, 0), (MAX_CAPTURE + 1, 0), (0, -1), (0, 2**NUMBER_BITS)])
def test_an_id_out_of_range_is_refused(capture: int, number: int) -> None:
    with pytest.raises(ValueError, match="no block has"):
        make_block_id(capture, number)


@given(captures, st.lists(st.integers(0, 2_000_000_000_000_000_000), min_size=2, max_size=20))
def test_ids_grow_whatever_the_clock_does(capture: int, times_ns: list[int]) -> None:
    previous = None
    for at_ns in times_ns:
        block_id = next_block_id(capture, previous, at_ns)
        assert previous is None or block_id > previous
        assert block_id >= first_block_id(capture, at_ns)
        previous = block_id


def test_an_id_is_the_receive_time_in_milliseconds_when_blocks_are_not_denser() -> None:
    assert split_block_id(next_block_id(3, make_block_id(3, 1_000), 2_000_999_999)) == (3, 2_000)
