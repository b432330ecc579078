"""The HTTP side: routes, limits and errors of an ASGI application around a service."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from raymae.audio.decode import AudioError, TooLongError
from raymae.serving.http.service import OverloadedError, Service
from raymae.serving.http.upload import TooLargeError, UploadError, read_body

log = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page.html")
RETRY_SECONDS = 1
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
STATUS: dict[type[Exception], int] = {
    TooLongError: 422,
    AudioError: 400,
    UploadError: 400,
    TooLargeError: 413,
    OverloadedError: 503,
}
"""Of what can be wrong with a request; the first that fits counts."""


def application(service: Service) -> Starlette:
    """The application of a service: GET / is a page, POST / classifies a recording, GET /health says what is served."""
    page = PAGE.read_text()
    policy = content_security_policy(page)

    async def show(request: Request) -> Response:
        return HTMLResponse(page, headers=HEADERS | {"Content-Security-Policy": policy})

    async def health(request: Request) -> Response:
        return answer(service.health())

    async def classify(request: Request) -> Response:
        try:
            with service.admitted():
                return await classified(service, request)
        except tuple(STATUS) as error:
            status = next(code for kind, code in STATUS.items() if isinstance(error, kind))
            return failure(status, str(error), {"Retry-After": str(RETRY_SECONDS)} if status == 503 else {})

    return Starlette(
        routes=[
            Route("/", show, methods=["GET"]),
            Route("/", classify, methods=["POST"]),
            Route("/health", health, methods=["GET"]),
        ],
        exception_handlers={HTTPException: refused, Exception: failed},
    )


async def classified(service: Service, request: Request) -> Response:
    """The answer to a recording, or that it took too long."""
    seconds = service.settings.timeout_seconds
    uploaded = False
    try:
        async with asyncio.timeout(seconds):
            body = await read_body(request.stream(), service.settings.max_bytes)
            uploaded = True
            wanted = request.query_params.get("spectrogram") == "true"
            found = await service.classify(body, request.headers.get("content-type", ""), wanted)
    except TimeoutError:
        what = "the recording could not be classified" if uploaded else "the upload did not end"
        return failure(504 if uploaded else 408, f"{what} within {seconds:g} s")
    except ClientDisconnect:
        return failure(400, "the connection ended within the upload")
    return answer(found)


def answer(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON that no cache keeps."""
    return JSONResponse(content, status, HEADERS | (headers or {}))


def failure(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """What went wrong, as JSON."""
    return answer({"error": message}, status, headers)


async def refused(request: Request, error: Exception) -> Response:
    """A path or a method that there is not."""
    assert isinstance(error, HTTPException)
    known = "POST / takes an audio file, GET / shows a page, GET /health says what is served"
    return failure(error.status_code, f"{request.method} {request.url.path}: {error.detail}; {known}")


async def failed(request: Request, error: Exception) -> Response:
    """A mistake of the server's own, which its log tells and the client is not told."""
    log.exception("request failed", exc_info=error)
    return failure(500, "the server failed; its log says why")


def content_security_policy(page: str) -> str:
    """What the page may do: run its own script, wear its own style, ask its own server, play the file it was given."""
    script, style = (
        " ".join(f"'sha256-{digest(text)}'" for text in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL))
        for tag in ("script", "style")
    )
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; media-src blob:; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def digest(text: str) -> str:
    """SHA-256 in base64."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
