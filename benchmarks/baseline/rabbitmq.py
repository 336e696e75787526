"""A private RabbitMQ node: own name, ports, data directory and port mapper, on the loopback interface only.

Needs the system's package `rabbitmq-server`; the service that the package brings need not run.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pika
from pika.exceptions import AMQPError

#: Where Debian keeps the script itself; the command of that name refuses to run for most users.
_DEBIAN_SCRIPT = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

START_PATIENCE_S = 60.0
END_PATIENCE_S = 20.0


class RabbitMQMissingError(RuntimeError):
    """RabbitMQ is not installed on this machine."""


@dataclass(frozen=True, slots=True)
class Node:
    """A running node."""

    url: str
    pid: int


@contextmanager
def rabbitmq() -> Iterator[Node]:
    """A new, empty node, which ends with the context, as does its port mapper.

    Raises RabbitMQMissingError where it is not installed, RuntimeError where it does not start within a minute.
    """
    script = str(_DEBIAN_SCRIPT) if _DEBIAN_SCRIPT.exists() else shutil.which("rabbitmq-server")
    mapper = shutil.which("epmd")
    if script is None or mapper is None:
        raise RabbitMQMissingError("RabbitMQ is not installed (Debian's package rabbitmq-server)")
    port, node_port, mapper_port = _free_ports(3)
    url = f"amqp://guest:guest@127.0.0.1:{port}/%2F"
    with tempfile.TemporaryDirectory(prefix="dhan-pipeline-rabbitmq-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        log = folder / "output.log"
        environment = os.environ | {
            "HOME": name,  # where the node writes its cookie
            "ERL_EPMD_PORT": str(mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"benchmark{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(node_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            # The script then becomes the node instead of waiting for it, so that the process that we end is the node.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
        }
        with (
            log.open("wb") as output,
            _running(mapper, environment, output),  # else the node starts one, which stays
            _running(script, environment, output) as node,
        ):
            _until_answers(url, node, log)
            yield Node(url, node.pid)


@contextmanager
def _running(program: str, environment: dict[str, str], output: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with the context."""
    process = subprocess.Popen(
        [program], env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(END_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_answers(url: str, node: subprocess.Popen[bytes], log: Path) -> None:
    give_up_at = time.monotonic() + START_PATIENCE_S
    while node.poll() is None and time.monotonic() < give_up_at:
        try:
            pika.BlockingConnection(pika.URLParameters(url)).close()
        except (AMQPError, OSError):
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"RabbitMQ did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
