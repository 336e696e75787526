import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pika
import pytest
from yarl import URL

from dhan_pipeline.transport import broker
from dhan_pipeline.transport.broker import BrokerError, check_url
from dhan_pipeline.transport.outlet import outlet
from dhan_pipeline_tests.proxy import proxy
from dhan_pipeline_tests.rabbitmq import Node

PASSWORD = "only-for-us"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def refused(url: URL | str) -> str:
    """Why there is no connection. Nobody is told the password."""
    with pytest.raises(BrokerError) as raised:
        async with outlet(str(url)):
            pass
    said = str(raised.value)
    assert PASSWORD not in said + repr(raised.value.__cause__)
    return said


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[URL]:
    """The URL of something on the network that is no RabbitMQ."""
    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield URL(f"amqp://guest:{PASSWORD}@127.0.0.1:{listening.sockets[0].getsockname()[1]}/")
    finally:
        listening.close()


@pytest.fixture
def tls_url(rabbitmq: Node, rabbitmq_url: str, certificates: Path | None) -> str:
    if certificates is None:
        assert not os.environ.get("CI"), "openssl is not installed"
        pytest.skip("openssl is not installed")
    return str(URL(rabbitmq_url).with_scheme("amqps").with_host("localhost").with_port(rabbitmq.tls_port))


@pytest.mark.parametrize(
    "url",
    ["amqp://guest:guest@localhost", "amqp://localhost:5672/%2F", "amqps://user:p%40ss@[::1]:5671/vhost?cafile=ca.pem"],
)
def test_an_address_of_rabbitmq_is_accepted(url: str) -> None:
    assert check_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:5672",
        f"http://guest:{PASSWORD}@localhost",
        f"amqp://guest:{PASSWORD}",
        f"amqp://guest:{PASSWORD}@",
        f"amqp://guest:{PASSWORD}@localhost:port",
        f"amqp://guest:{PASSWORD}/slash@localhost",
        f"amqp://guest:{PASSWORD}@localhost:99999",
    ],
)
def test_what_is_no_address_of_rabbitmq_is_refused_without_being_told(url: str) -> None:
    with pytest.raises(BrokerError, match=r"it reads amqp://user:password@host:5672/vhost") as raised:
        check_url(url)
    assert PASSWORD not in f"{raised.value!r} {raised.value.__cause__!r} {raised.value.__context__!r}"


async def test_credentials_and_virtual_hosts_that_rabbitmq_does_not_know_are_told_apart(rabbitmq_url: str) -> None:
    url = URL(rabbitmq_url)
    wrong = "RabbitMQ refuses the user or the password of RABBITMQ_URL."
    assert await refused(url.with_password(PASSWORD)) == wrong
    assert await refused(url.with_user("nobody").with_password(PASSWORD)) == wrong
    assert await refused(url.with_path("/elsewhere")) == (
        "RabbitMQ has no such virtual host as RABBITMQ_URL says, or the user may not use it."
    )


async def test_an_address_where_nobody_listens_is_told() -> None:
    url = f"amqp://guest:{PASSWORD}@127.0.0.1:1/"
    assert await refused(url) == "RabbitMQ cannot be reached at 127.0.0.1:1: nobody listens there."
    url = f"amqps://guest:{PASSWORD}@nowhere.invalid/"
    assert await refused(url) == "RabbitMQ cannot be reached at nowhere.invalid:5671: there is no such host."
    assert await refused(f"{url}?cadata=abc") == "The cadata of RABBITMQ_URL is not base64."


async def test_something_else_that_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "CONNECT_S", 0.2)
    done = asyncio.Event()

    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        writer.close()

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    async with server(web) as url:
        assert (await refused(url)).startswith(
            f"What answers at 127.0.0.1:{url.port} is not RabbitMQ, or not for amqp://"
        )
        assert "does not speak TLS" in await refused(url.with_scheme("amqps"))
    async with server(silent) as url:
        assert await refused(url) == f"RabbitMQ does not answer at 127.0.0.1:{url.port}."
        done.set()


async def test_a_certificate_is_accepted_from_its_authority_alone(tls_url: str, certificates: Path) -> None:
    url = URL(tls_url)
    trusting = url.update_query(cafile=str(certificates / "ca.pem"))
    async with outlet(str(trusting)) as end:
        await end.publish([b"1", b"2", b"3"])
        assert (await end.depths()).ready == (1, 1, 1)
    url, trusting = url.with_password(PASSWORD), trusting.with_password(PASSWORD)
    assert await refused(url) == (
        f"The certificate of RabbitMQ at localhost:{url.port} is not accepted: self-signed certificate in certificate"
        " chain. RABBITMQ_URL names the authority to trust with ?cafile=…"
    )
    assert "not valid for '127.0.0.1'" in await refused(trusting.with_host("127.0.0.1"))
    unreadable = "A file of certificates that RABBITMQ_URL names cannot be read, or holds none."
    assert await refused(url.update_query(cafile="/nowhere/ca.pem")) == unreadable
    assert await refused(url.update_query(cafile=str(certificates / "ca.key"))) == unreadable


async def test_a_port_for_tls_and_one_without_are_not_mixed_up(tls_url: str, rabbitmq_url: str) -> None:
    plain = URL(rabbitmq_url)
    assert "does not speak TLS" in await refused(plain.with_scheme("amqps"))
    assert "is not RabbitMQ, or not for amqp://" in await refused(plain.with_port(URL(tls_url).port))


async def test_queues_are_declared_again_as_they_are(rabbitmq_url: str) -> None:
    async with outlet(rabbitmq_url) as end:
        await end.publish([b"1", None, None])
        async with outlet(rabbitmq_url) as other:
            assert (await other.depths()).ready == (1, 0, 0)


async def test_a_queue_that_somebody_has_made_otherwise_is_named(rabbitmq_url: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        connection.channel().queue_declare("dhan.blocks.2", durable=True)
    said = await refused(rabbitmq_url)
    assert said.startswith("RabbitMQ has a queue dhan.blocks.2 with other properties: once it is empty, delete it")
    assert "inequivalent arg" in said


async def test_a_network_that_swallows_everything_ends_in_an_error(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "ANSWER_S", 0.3)
    monkeypatch.setattr(broker, "_CLOSE_S", 0.1)
    async with proxy(rabbitmq_url) as between, outlet(between.url) as end:
        with between.black_hole(), pytest.raises(BrokerError, match="has not answered for"):
            await end.publish([bytes(2 << 20)] * 3)
