"""The live page by a real server in this process, over the test's database."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from dhan_pipeline.page.app import make_app
from dhan_pipeline.settings import Settings
from dhan_pipeline_tests.ingest.feed import until


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """The page's address."""
    app = make_app(settings, settings.database_url or "", ["127.0.0.1"])
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, ws="none"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            until(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
