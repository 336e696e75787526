"""The live page, served."""

import ipaddress
import signal
import socket
from typing import Annotated

import typer

from dhan_pipeline.cli.common import open_database, read_settings
from dhan_pipeline.errors import PipelineError


def live(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Where it is; 0: any free port.")] = 3001,
    host: Annotated[
        str, typer.Option(help="The address to listen on. There is no login: whoever reaches it sees the page.")
    ] = "127.0.0.1",
) -> None:
    """Serve the live page: is the data good, rates, latency, gaps, and one instrument with its depth. Ctrl-C ends.

    It reads the database and changes nothing there; the capture may run on another machine. On this machine's own
    address it answers those only who ask for it as 127.0.0.1 or localhost; on another, such as 0.0.0.0 for all there
    are, whoever reaches it, by whatever name.
    """
    import uvicorn

    from dhan_pipeline.page.app import make_app

    settings = read_settings()
    with _listen(host, port) as listener, open_database(settings) as url:
        app = make_app(settings, url, names_of(host))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1))

        def end(_number: int, _frame: object) -> None:
            server.should_exit = True

        # The server listens to them itself once it has started, and raises them again when it has ended.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
        port = listener.getsockname()[1]
        everywhere = (address := _address(host)) is not None and address.is_unspecified
        name = socket.gethostname() if everywhere else f"[{host}]" if ":" in host else host
        print(f"The live page is on http://{name}:{port}; Ctrl-C ends it.", flush=True)
        server.run([listener])


def names_of(host: str) -> list[str]:
    """The names by which the page may be asked for; `*` is any.

    On a loopback address only a browser of this machine gets to it: one that is lured to another name for it is sent
    by somebody else's page. Whoever has it listen elsewhere wants others to see it, and knows what they call us.
    """
    address = _address(host)
    loopback = host == "localhost" or (address is not None and address.is_loopback)
    return ["127.0.0.1", "localhost", "::1", "[::1]", host] if loopback else ["*"]


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _listen(host: str, port: int) -> socket.socket:
    """Raises PipelineError where the address cannot be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]  # the rest says the address again
        raise PipelineError(f"The live page cannot be on {host}:{port} ({reason}): choose another --port.") from error
