"""What is muted, and whom an owner's alerts go to."""

from datetime import datetime
from pathlib import Path

import pytest

from dhan_pipeline.alerts.rules import (
    Rules,
    RulesError,
    all_destinations,
    destinations,
    is_muted,
    load_rules,
    unset,
)
from dhan_pipeline.sessions import IST

NOON = datetime(2026, 11, 27, 12, tzinfo=IST)
CHANNELS = {"slack": ("slack",), "email": ("email:ops@example.in",), "telegram": ("telegram:-1",)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "alerts.yaml"


def rules(path: Path, content: str) -> Rules:
    path.write_text(content)
    return load_rules(path)


def test_without_a_file_nothing_is_muted_and_every_channel_gets_everything(path: Path) -> None:
    none = load_rules(path)
    assert not is_muted(none, ["live_feed/gaps"], NOON)
    assert destinations(none, ["team:market-data"], CHANNELS) == ("slack", "email:ops@example.in", "telegram:-1")


@pytest.mark.parametrize("name", ["live_feed/gaps", "gaps", "live_feed", "live_feed/*", "*_feed*", "*"])
def test_a_mute_names_a_check_an_asset_or_all_by_a_wildcard(path: Path, name: str) -> None:
    muting = rules(path, f"mute:\n  - name: '{name}'\n")
    assert is_muted(muting, ["live_feed/gaps", "gaps", "live_feed"], NOON)
    assert is_muted(muting, ["ingest_job"], NOON) == (name == "*")


@pytest.mark.parametrize(
    ("until", "muted"),
    [
        ("2026-11-27 12:30", True),
        ("2026-11-27 11:30", False),
        ("2026-11-27T12:30:00+05:30", True),
        ("2026-11-27T06:00:00Z", False),
        ("2026-11-27", True),
        ("2026-11-26", False),
    ],
)
def test_a_mute_ends_at_its_time_in_india_and_a_day_at_its_end(path: Path, until: str, muted: bool) -> None:
    muting = rules(path, f"mute:\n  - name: gaps\n    until: {until}\n    why: known\n")
    assert is_muted(muting, ["gaps"], NOON) == muted


def test_owners_are_told_where_their_routes_lead(path: Path) -> None:
    routed = rules(
        path, "routes:\n  team:market-data: [slack, trader@example.in]\n  team:platform: ['telegram:-7', email]\n"
    )
    assert destinations(routed, ["team:market-data"], CHANNELS) == ("slack", "email:trader@example.in")
    assert destinations(routed, ["team:platform", "team:market-data"], CHANNELS) == (
        "telegram:-7",
        "email:ops@example.in",
        "slack",
        "email:trader@example.in",
    )
    assert set(all_destinations(routed, CHANNELS)) == {
        "slack",
        "telegram:-1",
        "telegram:-7",
        "email:ops@example.in",
        "email:trader@example.in",
    }


def test_an_owner_that_is_an_address_is_written_to(path: Path) -> None:
    assert destinations(load_rules(path), ["asha@example.in"], CHANNELS) == ("email:asha@example.in",)


def test_nobody_is_left_without_because_a_route_leads_nowhere(path: Path) -> None:
    routed = rules(path, "routes:\n  team:market-data: [telegram, webhook]\n")
    only_slack = {"slack": ("slack",)}
    assert destinations(routed, ["team:market-data"], only_slack) == ("slack",)
    assert destinations(routed, ["asha@example.in"], only_slack) == ("slack",)
    assert unset(routed, only_slack) == [
        "team:market-data is routed to telegram, which is not set.",
        "team:market-data is routed to webhook, which is not set.",
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("mute: gaps", "mute: a list is expected"),
        ("mute:\n  - until: 2026-11-27", "mute 1 name: it is missing"),
        ("mute:\n  - name: gaps\n    until: soon", "mute 1 until: soon is not a time such as 2026-11-28 09:30"),
        ("mute:\n  - nam: gaps", "mute 1 name: it is missing"),
        ("silence: []", "silence: there is no such key"),
        ("routes:\n  team:x: slack", "routes team:x: a list is expected"),
        ("mute: [", "line 1: not valid YAML"),
        ("- gaps", ": `key: value` lines are expected"),
    ],
)
def test_rules_that_cannot_be_read_say_where(path: Path, content: str, sentence: str) -> None:
    with pytest.raises(RulesError) as wrong:
        rules(path, content)
    assert str(path) in str(wrong.value)
    assert sentence in str(wrong.value)


def test_an_empty_file_has_no_rules(path: Path) -> None:
    assert rules(path, "# nothing yet\n") == Rules()


def test_the_example_is_a_file_of_rules() -> None:
    example = load_rules(Path(__file__).parent.parent.parent / "alerts.example.yaml")
    assert is_muted(example, ["shadow_comparison"], NOON)
    assert destinations(example, ["team:market-data"], CHANNELS) == ("slack", "email:ops@example.in")
