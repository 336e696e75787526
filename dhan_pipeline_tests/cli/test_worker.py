"""What a person reads who starts a worker, or has dead letters put back."""

import asyncio
import json
import signal
from pathlib import Path

import pika
import pytest

from dhan_pipeline.transport.broker import DEAD, queue_name
from dhan_pipeline.transport.dead_letters import dead_letters
from dhan_pipeline_tests.program import Here, running, sentence


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(tmp_path, monkeypatch, capsys)


def test_a_worker_needs_the_address_of_a_broker(here: Here, database_url: str) -> None:
    assert sentence(here("worker", database_url=database_url)).startswith("RABBITMQ_URL is not set")
    said = sentence(here("worker", database_url=database_url, rabbitmq_url="http://me:secret@127.0.0.1"))
    assert "amqp://" in said
    assert "secret" not in said


def test_dead_letters_need_it_too(here: Here, database_url: str) -> None:
    assert sentence(here("redrive", "--dead-letters")).startswith("RABBITMQ_URL is not set")
    assert sentence(here("redrive", "--list")).startswith("RABBITMQ_URL is not set")


def test_a_worker_whose_database_and_broker_are_away_waits_and_ends_in_order(tmp_path: Path) -> None:
    away = {"database_url": "postgresql://127.0.0.1:1/x", "rabbitmq_url": "amqp://127.0.0.1:1"}
    with running("worker", "--json", cwd=tmp_path, **away) as process:
        assert process.stdout is not None
        events = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        rest, log = process.communicate(timeout=20)
    assert {event["event"] for event in events} == {"started", "status", "warning"}
    assert process.returncode == 0, log
    assert json.loads(rest.splitlines()[-1])["event"] == "stopped"
    assert "Traceback" not in log


@pytest.fixture
def dead_letter(rabbitmq_url: str) -> str:
    """URL of a broker that has one dead letter of lane 2."""
    asyncio.run(dead_letters(rabbitmq_url))  # makes the queues
    headers = {"reason": "The message is damaged.", "lane": 2, "tries": 1, "died": "2026-11-20T09:00:05+00:00"}
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as broker:
        channel = broker.channel()
        channel.confirm_delivery()
        channel.basic_publish(DEAD, "2", bytes(1500), pika.BasicProperties(headers=headers), mandatory=True)
    return rabbitmq_url


def test_dead_letters_are_listed(here: Here, dead_letter: str) -> None:
    for _ in range(2):
        assert here("redrive", "--list", rabbitmq_url=dead_letter).stdout == (
            "2026-11-20 14:30:05 IST  lane 2      1,500 bytes  The message is damaged.\n"
        )
    facts = json.loads(here("redrive", "--list", "--json", rabbitmq_url=dead_letter).stdout)
    assert facts == {
        "lane": 2,
        "bytes": 1500,
        "reason": "The message is damaged.",
        "tries": 1,
        "died": "2026-11-20T09:00:05+00:00",
        "worker": None,
    }


def test_dead_letters_go_back_into_their_lanes(here: Here, dead_letter: str) -> None:
    done = here("redrive", "--dead-letters", rabbitmq_url=dead_letter)
    assert (done.returncode, done.stdout) == (0, "Dead letters that are back in their lanes: 1.\n")
    assert done.stderr == "Lane 2, once: The message is damaged.\n"
    assert here("redrive", "--list", rabbitmq_url=dead_letter).stdout == "There are no dead letters.\n"
    facts = json.loads(here("redrive", "--dead-letters", "--json", rabbitmq_url=dead_letter).stdout)
    assert facts == {"dead_letters": 0}
    with pika.BlockingConnection(pika.URLParameters(dead_letter)) as broker:
        _, _, body = next(broker.channel().consume(queue_name(2), inactivity_timeout=20))
        assert body == bytes(1500)


def test_with_a_broker_redrive_puts_dead_letters_back_first(here: Here, database_url: str, dead_letter: str) -> None:
    facts = json.loads(here("redrive", "--json", database_url=database_url, rabbitmq_url=dead_letter).stdout)
    assert (facts["dead_letters"], facts["examined"]) == (1, 0)
