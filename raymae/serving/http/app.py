"""The HTTP layer: routes, limits and errors of an ASGI application around a service.

The routes are described in `raymae.serving.http.openapi`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from raymae.audio.errors import AudioError, SilentError, TooLongError
from raymae.serving.http.formats import formats
from raymae.serving.http.guard import Guard
from raymae.serving.http.metrics import Counted
from raymae.serving.http.openapi import document
from raymae.serving.http.sample import sample
from raymae.serving.http.service import OverloadedError, Service
from raymae.serving.http.upload import FullError, StalledError, TooLargeError, UploadError, read_body

log = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page.html")
RETRY_SECONDS = 1
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
STATUS: dict[type[Exception], int] = {
    TooLongError: 422,
    SilentError: 422,
    AudioError: 400,
    UploadError: 400,
    TooLargeError: 413,
    OverloadedError: 503,
    FullError: 503,
}
"""Status codes of errors of a request; the first class that matches counts."""


def application(service: Service) -> Starlette:
    """The application of a service: GET / is a page, POST / classifies a recording; the rest says `document`."""
    page, described = PAGE.read_text(), document(service.settings, service.predictor.class_names)
    policy = content_security_policy(page)

    async def show(request: Request) -> Response:
        return HTMLResponse(page, headers=HEADERS | {"Content-Security-Policy": policy})

    async def health(request: Request) -> Response:
        return answer(service.health())

    async def describe(request: Request) -> Response:
        return answer(described)

    async def metrics(request: Request) -> Response:
        return Response(await service.metrics.text(), headers=HEADERS, media_type=CONTENT_TYPE_LATEST)

    async def try_out(request: Request) -> Response:
        made = await asyncio.get_running_loop().run_in_executor(service.decoders, sample, service.settings)
        return Response(made, headers=HEADERS, media_type="audio/wav")

    async def classify(request: Request) -> Response:
        try:
            return await classified(service, request)
        except tuple(STATUS) as error:
            status = next(code for kind, code in STATUS.items() if isinstance(error, kind))
            return failure(status, reason(error), {"Retry-After": str(RETRY_SECONDS)} if status == 503 else {})

    pages = {"/": show, "/health": health, "/openapi.json": describe, "/metrics": metrics, "/sample.wav": try_out}
    return Starlette(
        routes=[
            *(Route(path, function, methods=["GET"]) for path, function in pages.items()),
            Route("/", classify, methods=["POST"]),
        ],
        exception_handlers={HTTPException: refused, Exception: failed},
        middleware=[
            Middleware(Counted, metrics=service.metrics, paths=frozenset(pages)),
            Middleware(Guard, host=service.settings.host, refuse=lambda reason: failure(403, reason)),
        ],
    )


def reason(error: Exception) -> str:
    """The reason for users: of what can't be decoded, with the formats that can."""
    told = str(error)
    return f"{told}; formats: {', '.join(formats())}" if told.startswith(("can't be decoded", "empty file")) else told


async def classified(service: Service, request: Request) -> Response:
    """The answer to an uploaded recording, or an error after too long a time."""
    seconds = service.settings.timeout_seconds
    uploaded = False
    try:
        async with asyncio.timeout(seconds):
            with service.uploads.held() as held:
                body = await read_body(request.stream(), service.settings.max_bytes, held)
                uploaded = True
                wanted = request.query_params.get("spectrogram") == "true"
                with service.admitted():  # the body is here: a slow upload takes no place in the queue
                    result = await service.classify(body, request.headers.get("content-type", ""), wanted)
    except StalledError as error:
        return failure(408, str(error))
    except TimeoutError:
        what = "the recording could not be classified" if uploaded else "the upload did not end"
        return failure(504 if uploaded else 408, f"{what} within {seconds:g} s")
    except ClientDisconnect:
        return failure(400, "the connection ended within the upload")
    return answer(result)


def answer(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response that no cache keeps."""
    return JSONResponse(content, status, HEADERS | (headers or {}))


def failure(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """An error as a JSON response."""
    return answer({"error": message}, status, headers)


async def refused(request: Request, error: Exception) -> Response:
    """The answer to an unknown path or method."""
    assert isinstance(error, HTTPException)
    known = "POST / takes an audio file, GET / shows a page, GET /openapi.json describes all paths"
    return failure(error.status_code, f"{request.method} {request.url.path}: {error.detail}; {known}")


async def failed(request: Request, error: Exception) -> Response:
    """The answer to an internal error: details are in the log and not in the response."""
    log.exception("request failed", exc_info=error)
    return failure(500, "internal error; see the server's log")


def content_security_policy(page: str) -> str:
    """The page's policy: run its own script, use its own style, call its own server, play the uploaded file."""
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
