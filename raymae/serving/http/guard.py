"""Refuse requests that another web site makes a visitor's browser send to the server."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL = "localhost"


class Guard:
    """ASGI middleware that refuses, by `refuse(reason)`, what isn't meant for this server.

    On loopback that is a `Host` of any other name: a site whose name resolves to 127.0.0.1 would read the answers.
    Everywhere it is a request other than GET and HEAD that a browser says another site has caused, by `Sec-Fetch-Site`
    or `Origin`. Clients that aren't browsers send neither.
    """

    def __init__(self, app: ASGIApp, host: str, refuse: Callable[[str], Response]) -> None:
        self.app, self.refuse = app, refuse
        self.local_only = is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        reason = self._reason(Request(scope)) if scope["type"] == "http" else None
        answer: Callable[[Scope, Receive, Send], Awaitable[None]] = self.refuse(reason) if reason else self.app
        await answer(scope, receive, send)

    def _reason(self, request: Request) -> str | None:
        host = request.headers.get("host", "")
        if self.local_only and not is_loopback(hostname(host)):
            return f"Host: {host} is not this machine; ask for localhost or 127.0.0.1"
        if request.method in ("GET", "HEAD"):
            return None
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "requests from other sites are refused"
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return f"requests from other sites are refused: Origin: {origin}"
        return None


def hostname(host: str) -> str:
    """The name in a Host header, without the port."""
    return (urlsplit(f"//{host}").hostname or "") if "@" not in host else ""


def is_loopback(name: str) -> bool:
    """Whether a name or address is that of this machine alone."""
    try:
        return name == LOCAL or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
