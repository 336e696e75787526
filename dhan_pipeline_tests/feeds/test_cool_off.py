import time
from pathlib import Path

from dhan_pipeline.feeds.connection import FeedPolicy
from dhan_pipeline.feeds.cool_off import CoolOff

POLICY = FeedPolicy(rest_s=60, longest_rest_s=300)


def over(path: Path) -> None:
    """Let the rest of the file be over, as if time had passed."""
    times = path.read_text().split()[1]
    path.write_text(f"{time.time() - 1:.0f} {times}")


def test_rests_grow_from_a_minute_to_five_also_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "cool_off"
    rests = []
    for _ in range(5):
        cool_off = CoolOff(path, POLICY)
        cool_off.start()
        rests.append(cool_off.remaining_s())
        over(path)
    for rest, expected in zip(rests, (60, 120, 240, 300, 300), strict=True):
        assert expected - 2 < rest <= expected * 1.25


def test_a_restart_neither_shortens_nor_prolongs_a_rest(tmp_path: Path) -> None:
    first = CoolOff(tmp_path / "cool_off", POLICY)
    first.start()
    again = CoolOff(tmp_path / "cool_off", POLICY)
    again.start()
    assert abs(again.remaining_s() - first.remaining_s()) < 2


def test_what_the_server_asks_for_is_granted_up_to_the_longest(tmp_path: Path) -> None:
    asked = CoolOff(tmp_path / "asked", POLICY)
    asked.start(at_least_s=150)
    assert 148 < asked.remaining_s() <= 150 * 1.25
    too_much = CoolOff(tmp_path / "too_much", POLICY)
    too_much.start(at_least_s=86_400)
    assert too_much.remaining_s() <= 300 * 1.25


def test_a_server_that_is_content_makes_the_next_rest_short_again(tmp_path: Path) -> None:
    path = tmp_path / "cool_off"
    for _ in range(3):
        cool_off = CoolOff(path, POLICY)
        cool_off.start()
        over(path)
    cool_off.reset()
    over(path)
    again = CoolOff(path, POLICY)
    again.start()
    assert again.remaining_s() <= 75


def test_a_rest_long_past_does_not_make_the_next_one_long(tmp_path: Path) -> None:
    path = tmp_path / "cool_off"
    path.write_text(f"{time.time() - 3600:.0f} 9")
    cool_off = CoolOff(path, POLICY)
    cool_off.start()
    assert cool_off.remaining_s() <= 75
