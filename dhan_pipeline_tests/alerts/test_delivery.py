"""What is not taken waits, is tried again, and is given up in the end; and what comes of a storm."""

from collections.abc import Sequence

from dhan_pipeline.alerts.channels import DeliveryError
from dhan_pipeline.alerts.delivery import (
    FIRST_PAUSE_S,
    GIVE_UP_S,
    LONGEST_PAUSE_S,
    MANY,
    MOST_WAITING,
    Outbox,
    deliver,
    post,
    problems,
    progress,
)
from dhan_pipeline.alerts.messages import Alert
from dhan_pipeline.alerts.transitions import Level

NOW = 1_800_000_000.0


def alerts(count: int, at_s: float = NOW) -> list[Alert]:
    return [Alert(name=f"check {n}", after=Level.ERROR, text="It fails.", at_s=at_s) for n in range(count)]


class Wire:
    """What destinations take, and which do not."""

    def __init__(self, *broken: str, retry_after_s: float = 0.0) -> None:
        self.broken = set(broken)
        self.retry_after_s = retry_after_s
        self.taken: list[tuple[str, int, str]] = []
        self.tries = 0

    def send(self, destination: str, sent: Sequence[Alert], note: str) -> None:
        self.tries += 1
        if destination in self.broken:
            raise DeliveryError("It is away.", self.retry_after_s)
        self.taken.append((destination, len(sent), note))


def test_each_alert_is_a_message_and_many_are_one() -> None:
    wire = Wire()
    outbox, took = deliver(post({}, {"slack": alerts(MANY), "webhook": alerts(MANY + 1)}), NOW, wire.send)
    assert wire.taken == [("slack", 1, "")] * MANY + [("webhook", MANY + 1, "")]
    assert (outbox, took) == ({}, ["slack", "webhook"])


def test_a_destination_that_is_away_keeps_no_other_waiting() -> None:
    wire = Wire("slack")
    outbox, took = deliver(post({}, {"slack": alerts(2), "webhook": alerts(2)}), NOW, wire.send)
    assert took == ["webhook"]
    assert len(outbox["slack"].waiting) == 2
    assert wire.tries == 1 + 2


def test_it_is_tried_again_after_growing_pauses_and_then_all_of_it_comes_in_order() -> None:
    wire = Wire("slack")
    outbox = post({}, {"slack": alerts(2)})
    tried_s = []
    for second in range(2000):
        before = wire.tries
        outbox, _ = deliver(outbox, NOW + second, wire.send)
        tried_s += [second] * (wire.tries - before)
    assert tried_s == [0, 15, 45, 105, 225, 465, 945, 1545]
    assert problems(outbox) == ["slack: It is away."]
    assert progress(outbox, NOW + 2000) == ["Waiting for slack: 2 alerts; tried 8 times in 33 min, and next in 2 min."]
    wire.broken.clear()
    outbox, took = deliver(outbox, NOW + 2145, wire.send)
    assert (outbox, took, wire.taken) == ({}, ["slack"], [("slack", 1, "")] * 2)


def test_of_what_changed_more_than_once_while_it_waited_only_how_it_is_now_is_told() -> None:
    failed, well = alerts(MANY), [alert.model_copy(update={"after": Level.OK}) for alert in alerts(MANY)]
    sent: list[Level] = []
    deliver(
        post(post({}, {"slack": failed}), {"slack": well}),
        NOW,
        lambda _, messages, __: sent.extend(alert.after for alert in messages),
    )
    assert sent == [Level.OK] * MANY


def test_a_destination_is_left_alone_for_as_long_as_it_wants() -> None:
    outbox, _ = deliver(post({}, {"slack": alerts(1)}), NOW, Wire("slack", retry_after_s=42).send)
    assert outbox["slack"].next_s == NOW + 42
    assert FIRST_PAUSE_S < 42 < LONGEST_PAUSE_S


def test_what_nobody_took_is_given_up_and_the_next_message_says_so() -> None:
    wire = Wire("slack")
    outbox, _ = deliver(post({}, {"slack": alerts(3)}), NOW, wire.send)
    outbox, _ = deliver(outbox, NOW + GIVE_UP_S, wire.send)
    assert problems(outbox) == ["slack: It is away. Given up so far: 3 alerts."]
    assert progress(outbox, NOW + GIVE_UP_S) == []
    wire.broken.clear()
    later_s = NOW + GIVE_UP_S + 1
    outbox, _ = deliver(post(outbox, {"slack": alerts(1, later_s)}), later_s, wire.send)
    assert wire.taken == [("slack", 1, "Before this, 3 alerts could not be delivered here.")]
    assert outbox == {}


def test_the_state_stays_small_however_much_waits() -> None:
    outbox: Outbox = {}
    for _ in range(10):
        outbox, _ = deliver(post(outbox, {"slack": alerts(20)}), NOW, Wire("slack").send)
    assert len(outbox["slack"].waiting) == MOST_WAITING
    assert outbox["slack"].lost == 200 - MOST_WAITING


def test_a_round_that_takes_too_long_leaves_the_rest_for_the_next() -> None:
    outbox, took = deliver(post({}, {"slack": alerts(1)}), NOW, Wire().send, round_s=0.0)
    assert took == []
    assert deliver(outbox, NOW, Wire().send) == ({}, ["slack"])
