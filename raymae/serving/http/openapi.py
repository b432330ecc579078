"""The OpenAPI description of the server, complete: paths, parameters, answers and errors."""

from __future__ import annotations

from typing import Any

import raymae
from raymae.config import ServeConfig
from raymae.serving.http.formats import formats

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
SECONDS: Schema = {"type": "number", "minimum": 0, "description": "Seconds from the beginning of the recording"}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
BINARY: Schema = {"type": "string", "format": "binary"}
RETRY: Schema = {"Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer"}}}


def document(settings: ServeConfig, class_names: list[str]) -> dict[str, Any]:
    """The description, of OpenAPI 3.1, for JSON."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "raymae: acoustic scenes",
            "version": raymae.__version__,
            "description": "Classifies the acoustic scene of recordings. There is no log-in.",
        },
        "servers": [{"url": "/"}],
        "paths": {
            "/": {"get": page(), "post": classify(settings)},
            "/health": {"get": json_answer("health", "Reports the classifier and the limits", "Health")},
            "/sample.wav": {"get": sample()},
            "/metrics": {"get": metrics()},
            "/openapi.json": {"get": description()},
        },
        "components": {"schemas": schemas(class_names)},
    }


def operation(name: str, summary: str, content: dict[str, Any], errors: dict[str, Any] | None = None) -> dict[str, Any]:
    """An operation with its answer 200 and its errors."""
    common = {
        "403": error(
            "The Host isn't this machine, which the server listens on alone, or another site sent the request"
        ),
        "500": error("Internal error; details are in the server's log"),
    }
    found = common | (errors or {})
    ok = {"description": "The answer", "content": content}
    return {"operationId": name, "summary": summary, "responses": {"200": ok, **dict(sorted(found.items()))}}


def json_answer(name: str, summary: str, schema: str) -> dict[str, Any]:
    """An operation whose answer is JSON of a schema."""
    return operation(name, summary, {"application/json": {"schema": ref(schema)}})


def error(text: str, headers: Schema | None = None) -> dict[str, Any]:
    """A response with an error."""
    found: dict[str, Any] = {"description": text, "content": {"application/json": {"schema": ref("Error")}}}
    return found | ({"headers": headers} if headers else {})


def page() -> dict[str, Any]:
    """GET /."""
    return operation("page", "A page to drop a recording on", {"text/html": {"schema": TEXT}})


def sample() -> dict[str, Any]:
    """GET /sample.wav."""
    return operation(
        "sample", "A recording to try the server with, made by synthesis", {"audio/wav": {"schema": BINARY}}
    )


def metrics() -> dict[str, Any]:
    """GET /metrics."""
    return operation(
        "metrics", "Counts of all replicas together, in Prometheus's text format", {"text/plain": {"schema": TEXT}}
    )


def description() -> dict[str, Any]:
    """GET /openapi.json."""
    return operation("openapi", "This description", {"application/json": {"schema": {"type": "object"}}})


def classify(settings: ServeConfig) -> dict[str, Any]:
    """POST /."""
    seconds = f"{settings.timeout_seconds:g} s"
    errors = {
        "400": error(f"The upload is no recording, or not whole. Formats: {', '.join(formats())}"),
        "408": error(f"The upload did not end within {seconds}, or nothing of it came for ten seconds"),
        "413": error(f"The upload is larger than {settings.max_mb:g} MB"),
        "422": error(f"The recording is silent, or longer than {settings.max_minutes:g} minutes"),
        "503": error(f"{settings.queue} recordings are being worked on, or all uploads take too much memory", RETRY),
        "504": error(f"The recording could not be classified within {seconds}"),
    }
    found = operation("classify", "Classify a recording", {"application/json": {"schema": ref("Answer")}}, errors)
    form = {"type": "object", "properties": {"file": BINARY}, "required": ["file"]}
    found["parameters"] = [
        {
            "name": "spectrogram",
            "in": "query",
            "description": "Whether the answer holds the log-mel as a picture",
            "schema": {"type": "boolean", "default": False},
        }
    ]
    found["requestBody"] = {
        "required": True,
        "description": f"An audio file, of any of {', '.join(formats())}, as it is or as the first file of a form",
        "content": {
            "application/octet-stream": {"schema": BINARY},
            "audio/*": {"schema": BINARY},
            "multipart/form-data": {"schema": form},
        },
    }
    return found


def schemas(class_names: list[str]) -> dict[str, Schema]:
    """The schemas of all answers."""
    label = {"type": "string", "description": "A class; of a multi-label classifier all present ones, joined by ;"}
    named = {name: SHARE for name in class_names}
    place = {"start": SECONDS, "end": SECONDS}
    silent = record(place | {"error": {"const": "silent"}}, "A part without sound")
    return {
        "Error": record({"error": TEXT | {"description": "The reason, in one line"}}),
        "Probabilities": record(named, "The probability of every class"),
        "Window": one_of(record(place | {"probabilities": ref("Probabilities")}), silent),
        "Scene": one_of(record(place | {"scene_label": label, "confidence": SHARE}), silent),
        "Spectrogram": record(
            {
                "columns": {"type": "integer"},
                "bands": {"type": "integer"},
                "hertz": {"type": "array", "items": NUMBER, "description": "The centre of each band"},
                "range_db": NUMBER,
                "values": TEXT | {"description": "Base64 of (bands, columns) bytes, the lowest band first"},
            }
        ),
        "Answer": record(
            {
                "scene_label": label | {"description": "The scene of the recording as a whole"},
                "confidence": SHARE | {"description": "The largest of the probabilities"},
                "probabilities": ref("Probabilities"),
                "duration": SECONDS | {"description": "Length of the recording, seconds"},
                "scenes": listed("Scene", "Stretches of neighbouring windows with the same label"),
                "windows": listed("Window", "Parts of the recording, each as long as a training clip"),
            },
            "Of the recording as a whole: the mean over its windows with sound, by their length",
            {"spectrogram": ref("Spectrogram")},
        ),
        "Health": record(
            {
                "status": {"const": "ok"},
                "classifier": TEXT,
                "classes": {"type": "array", "items": TEXT},
                "labels": {"enum": ["single", "multi"]},
                "formats": {"type": "array", "items": TEXT},
                "sample_rate": {"type": "integer"},
                **{name: NUMBER for name in ("window_seconds", "max_mb", "max_minutes", "timeout_seconds")},
            }
        ),
    }


def record(properties: Schema, description: str = "", optional: Schema | None = None) -> Schema:
    """The schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": properties | (optional or {}),
        "required": list(properties),
        "additionalProperties": False,
    } | ({"description": description} if description else {})


def listed(name: str, description: str) -> Schema:
    """The schema of a list."""
    return {"type": "array", "items": ref(name), "description": description}


def one_of(*kinds: Schema) -> Schema:
    """The schema of either."""
    return {"oneOf": list(kinds)}


def ref(name: str) -> Schema:
    """A reference to a schema."""
    return {"$ref": f"#/components/schemas/{name}"}
