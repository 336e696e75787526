"""What alerts are sent to: an HTTP server and a mail server of the test's own, which may refuse or not answer."""

import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


class Receiver:
    """An HTTP server that keeps what is posted to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.posts: list[tuple[str, dict[str, Any]]] = []
        """Path and JSON of each."""
        self.status, self.body, self.headers = 200, b"", dict[str, str]()
        """What it answers."""
        self.rules: Callable[[dict[str, Any]], str] = lambda _: ""
        """Why it refuses a message by the rules of its maker, in its words; empty where it takes it."""
        self.speaks = threading.Event()
        """It answers while this is set."""
        self.speaks.set()

    @property
    def titles(self) -> list[str]:
        """Of what the webhook was sent and was taken."""
        return [post["title"] for _, post in self.posts]


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A `Receiver` that serves."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not received.speaks.wait(30):
                return
            if refusal := received.rules(body):
                received.status, received.body = 400, refusal.encode()
            if received.status == 200:
                received.posts.append((self.path, body))
            with suppress(ConnectionError):  # who waited no longer hears no answer
                self.send_response(received.status)
                for name, value in received.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(received.body)))
                self.end_headers()
                self.wfile.write(received.body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received = Receiver(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield received
    finally:
        received.speaks.set()
        server.shutdown()
        thread.join()
        server.server_close()


def slacks_rules(body: dict[str, Any]) -> str:
    """What Slack documents of incoming webhooks: a text of at most 40,000 characters, whose &, < and > are spelled out.

    What stands in angle brackets is a link or a mention to it, such as <!channel>, which calls everybody.
    """
    words = body.get("text")
    if not isinstance(words, str) or not words.strip():
        return "no_text"
    bare = re.sub("&(amp|lt|gt);", "", words)
    return "invalid_payload" if len(words) > 40_000 or re.search("[&<>]", bare) or set(body) != {"text"} else ""


def telegrams_rules(body: dict[str, Any]) -> str:
    """What Telegram documents of sendMessage: a chat, and 1 to 4096 characters; without parse_mode all are plain."""
    said = ""
    if not isinstance(body.get("chat_id"), str | int) or not body["chat_id"]:
        said = "Bad Request: chat_id is empty"
    elif not isinstance(body.get("text"), str) or not body["text"].strip():
        said = "Bad Request: message text is empty"
    elif len(body["text"]) > 4096:
        said = "Bad Request: message is too long"
    elif set(body) != {"chat_id", "text", "link_preview_options"}:
        said = "Bad Request: can't parse entities"
    return json.dumps({"ok": False, "error_code": 400, "description": said}) if said else ""


class Mailbox:
    """What a mail server took, and what it does not take."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.refused: set[str] = set()
        self.port = 0

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refused:
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.content, bytes)
        mail = BytesParser(EmailMessage, policy=default).parsebytes(envelope.content)
        mail["X-Recipients"] = ",".join(envelope.rcpt_tos)
        self.mails.append(mail)
        return "250 OK"


def _login(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
    right = isinstance(data, LoginPassword) and (data.login, data.password) == (b"alerts@example.in", b"p@ss word")
    return AuthResult(success=right, handled=False)


class _Server(Controller):
    def _trigger_server(self) -> None:
        assert self.server is not None
        self.port = self.server.sockets[0].getsockname()[1]  # asked for any
        super()._trigger_server()


@contextmanager
def mail_server(starttls: ssl.SSLContext | None = None, tls: ssl.SSLContext | None = None) -> Iterator[Mailbox]:
    """A mail server; with TLS there is a login: alerts@example.in, `p@ss word`."""
    mailbox = Mailbox()
    options: dict[str, Any] = {}
    if starttls is not None:
        options = {
            "authenticator": _login,
            "auth_required": True,
            "tls_context": starttls,
            "require_starttls": True,
        }
    if tls is not None:  # of which it does not know
        options = {"authenticator": _login, "auth_require_tls": False, "ssl_context": tls}
    controller = _Server(mailbox, hostname="127.0.0.1", port=0, **options)
    controller.start()
    mailbox.port = controller.port
    try:
        yield mailbox
    finally:
        controller.stop()
