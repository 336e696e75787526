"""A private RabbitMQ node: own name, ports, data directory and port mapper, on the loopback interface only.

Needs the system's package `rabbitmq-server`; the service that the package brings need not run.
"""

import json
import logging
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pika
from pika.exceptions import AMQPError

#: Where Debian keeps the scripts themselves; the commands of these names refuse to run for most users.
_DEBIAN_SCRIPTS = Path("/usr/lib/rabbitmq/bin")

# Nobody answers while the node starts, which is not worth a word.
logging.getLogger("pika").setLevel(logging.CRITICAL)

START_PATIENCE_S = 60.0
END_PATIENCE_S = 20.0

_VIRTUAL_HOSTS = 8

#: Where a node's ports are chosen.
_PORTS = range(20_000, 32_000)

#: Ends what runs, and removes the folder, once we let go of its standard input: at the end, or because we were killed.
_GUARDIAN = 'while read -r pids; do running=$pids; done; kill -9 $running; rm -rf "$0"'

_CONFIGURATION = """[{{rabbit, [
  {{ssl_listeners, [{{"127.0.0.1", {port}}}]}},
  {{ssl_options, [{{cacertfile, "{folder}/ca.pem"}}, {{certfile, "{folder}/server.pem"}},
                 {{keyfile, "{folder}/server.key"}}, {{verify, verify_none}}]}}
]}}].
"""


class RabbitMQMissingError(RuntimeError):
    """RabbitMQ is not installed on this machine."""


class Node:
    """A node, which may be stopped and started again: ports and data stay."""

    def __init__(self, folder: Path, certificates: Path | None) -> None:
        self._server = _script("rabbitmq-server")
        mapper = _script("epmd")
        port, tls_port, node_port, mapper_port = _free_ports(4)
        self.url = f"amqp://guest:guest@127.0.0.1:{port}/%2F"
        self.tls_port = tls_port
        """Of `localhost`, where there are certificates."""
        self._folder = folder
        self._log = folder / "output.log"
        self._unused: list[str] = []
        self._virtual_hosts = 0
        if certificates is not None:
            (folder / "advanced.config").write_text(_CONFIGURATION.format(port=tls_port, folder=certificates))
        self._environment = os.environ | {
            "HOME": str(folder),  # where the node writes its cookie
            "ERL_EPMD_PORT": str(mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"private{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(node_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            # The script then becomes the node instead of waiting for it, so that the process that we end is the node.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
        }
        # Sessions of their own: an interrupt from the keyboard is for us alone.
        self._guardian = subprocess.Popen(
            ["/bin/sh", "-c", _GUARDIAN, str(folder)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._mapper = self._run(mapper)  # else the node starts one, which stays
        self._node: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The running node's."""
        assert self._node is not None
        return self._node.pid

    def start(self) -> None:
        """Return once it answers; at once where it runs. Raises RuntimeError where it does not within a minute."""
        if self._node is None:
            self._node = self._run(self._server)
        give_up_at = time.monotonic() + START_PATIENCE_S
        while self._node.poll() is None and time.monotonic() < give_up_at:
            try:
                pika.BlockingConnection(pika.URLParameters(self.url)).close()
            except (AMQPError, OSError):
                time.sleep(0.1)
            else:
                return
        raise RuntimeError(f"RabbitMQ did not start:\n{self._log.read_text(errors='replace')[-2000:]}")

    def stop(self) -> None:
        """End in order."""
        if self._node is not None:
            self._node.terminate()
            self._node.wait(END_PATIENCE_S)
            self._forget()

    def kill(self) -> None:
        """End as a crash does (kill -9)."""
        if self._node is not None:
            self._node.kill()
            self._node.wait()
            self._forget()

    def new_url(self) -> str:
        """URL of a virtual host that nobody has used. The node runs.

        Not of queues that were deleted: one that is made anew under its old name does not always survive a crash.
        """
        if not self._unused:  # several at once, since asking takes a second
            self._unused = [f"v{self._virtual_hosts + i}" for i in range(_VIRTUAL_HOSTS)]
            self._virtual_hosts += _VIRTUAL_HOSTS
            rights = {"user": "guest", "configure": ".*", "write": ".*", "read": ".*"}
            definitions = {
                "vhosts": [{"name": name} for name in self._unused],
                "permissions": [rights | {"vhost": name} for name in self._unused],
            }
            file = self._folder / "definitions.json"
            file.write_text(json.dumps(definitions))
            self.control("import_definitions", str(file))
        return self.url.replace("%2F", self._unused.pop())

    def control(self, *arguments: str) -> str:
        """What `rabbitmqctl` says. It takes a second."""
        command = [_script("rabbitmqctl"), "--quiet", *arguments]
        return subprocess.run(command, env=self._environment, check=True, capture_output=True, text=True).stdout

    def close(self) -> None:
        """End all; the data are gone."""
        assert self._guardian.stdin is not None
        self._guardian.stdin.close()
        self._guardian.wait()
        self._mapper.wait()
        if self._node is not None:
            self._node.wait()

    def _run(self, program: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as output:
            process = subprocess.Popen(
                [program],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._tell(process.pid)
        return process

    def _forget(self) -> None:
        self._node = None
        self._tell()

    def _tell(self, *pids: int) -> None:
        """Tell the guardian what runs."""
        assert self._guardian.stdin is not None
        mapper = getattr(self, "_mapper", None)
        running = [*pids] if mapper is None else [mapper.pid, *pids]
        self._guardian.stdin.write(" ".join(map(str, running)) + "\n")
        self._guardian.stdin.flush()


@contextmanager
def rabbitmq(certificates: Path | None = None) -> Iterator[Node]:
    """A new, empty node, which ends with the context, as does its port mapper: also where this process is killed.

    With TLS where there is a folder with `ca.pem`, `server.pem` and `server.key`. Raises RabbitMQMissingError where it
    is not installed, RuntimeError where it does not start within a minute.
    """
    with tempfile.TemporaryDirectory(prefix="dhan-pipeline-rabbitmq-", ignore_cleanup_errors=True) as name:
        node = Node(Path(name), certificates)
        try:
            node.start()
            yield node
        finally:
            node.close()


def make_certificates(folder: Path) -> None:
    """A new authority and a certificate of `localhost` that it has signed. Raises FileNotFoundError without openssl."""
    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    for command in (
        f"req -x509 {key} -subj /CN=authority -keyout ca.key -out ca.pem",
        f"req {key} -subj /CN=localhost -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -set_serial 1 -extfile names -out server.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)


def _script(name: str) -> str:
    script = _DEBIAN_SCRIPTS / name
    found = str(script) if script.exists() else shutil.which(name)
    if found is None:
        raise RabbitMQMissingError("RabbitMQ is not installed (Debian's package rabbitmq-server)")
    return found


def _free_ports(count: int) -> list[int]:
    """Below those that the system gives to clients: what the node frees while it is down is still free after."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"{count} ports are not free")
