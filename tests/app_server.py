"""A real server of the page of `spad app`, on loopback."""

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from spad.app.config import AppConfig
from spad.app.server import AppServer


class Served:
    """A server that runs, and requests to it as the page makes them."""

    def __init__(self, server: AppServer, port: int):
        self.server = server
        self.host = f"127.0.0.1:{port}"
        self.address = f"http://{self.host}/"

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of an answer; JSON is sent unless `body` is bytes."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"x-spad-token": self.server.token, **(headers or {})}
        request = urllib.request.Request(self.address + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read(), dict(error.headers)

    def messages(self, path: str, body: Any) -> list[dict[str, Any]]:
        """All messages of a long request."""
        status, data, _ = self.ask(path, body)
        assert status == 200, data
        return [json.loads(line) for line in data.splitlines() if line]


@contextmanager
def serving(**settings: Any) -> Iterator[Served]:
    server = AppServer(AppConfig(**settings))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        config = uvicorn.Config(server.app(), log_level="warning", timeout_graceful_shutdown=3)
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Served(server, listener.getsockname()[1])
        finally:
            server.close()
            running.should_exit = True
            thread.join(timeout=30)
            assert not thread.is_alive()
