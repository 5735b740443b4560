"""Who may ask the server: the page itself, from the hosts it is served at, with its token."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN = "x-spad-token"
# Sixteen images of 1024 pixels as PNG fit.
MOST_BODY_BYTES = 48 * 2**20
# Images come from data: and blob: addresses, which models' textures are read from as well.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class TooLarge(Exception):
    """A request's body is larger than allowed."""


class Guard:
    """Server layer that refuses what does not come from the page.

    Args:
        app: the server behind it.
        token: that requests below /api must carry; the page holds it.
        hosts: names that the server answers to, without port; None: any. Another name means that
            a foreign site points at this machine.
        password: that the browser must send (HTTP Basic), or None.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: Iterable[str] | None, password: str | None):
        self.app = app
        self.token = token
        self.hosts = None if hosts is None else frozenset(hosts)
        self.password = password

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            return await refusal(scope, receive, send_with_headers)
        try:
            await self.app(scope, _limited(receive), send_with_headers)
        except TooLarge:
            refusal = PlainTextResponse(f"expected up to {MOST_BODY_BYTES // 2**20} MB", 413)
            await refusal(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts is not None and _without_port(host) not in self.hosts:
            return PlainTextResponse("expected this server's own host name", 400)
        if self.password is not None and not self._knows_password(headers):
            ask = {"www-authenticate": 'Basic realm="spad", charset="UTF-8"'}
            return PlainTextResponse("expected the password", 401, ask)
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return PlainTextResponse("expected a request of this server's own page", 403)
        is_api = scope["path"].startswith("/api/")
        if is_api and not _same(headers.get(TOKEN, ""), self.token):
            return PlainTextResponse("expected the page's token; load the page again", 403)
        if int(_number(headers.get("content-length"))) > MOST_BODY_BYTES:
            return PlainTextResponse(f"expected up to {MOST_BODY_BYTES // 2**20} MB", 413)
        return None

    def _knows_password(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            text = base64.b64decode(given, validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            return False
        return _same(text.partition(":")[2], self.password or "")


def _same(given: str, right: str) -> bool:
    """Equality that takes as long for a near miss as for a far one."""
    return secrets.compare_digest(given.encode(), right.encode())


def _without_port(host: str) -> str:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    return name.strip("[]").lower()


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() else 0


def _limited(receive: Receive) -> Receive:
    """`receive` that counts the body, since a request may not say its length."""
    read = 0

    async def receive_part() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > MOST_BODY_BYTES:
            raise TooLarge
        return message

    return receive_part
