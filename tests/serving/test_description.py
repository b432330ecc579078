"""The OpenAPI description says what the server answers; the sample recording is answered; errors name the formats."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import soundfile

from raymae.config import ServeConfig
from raymae.inference.predictor import Predictor
from raymae.serving.http.formats import formats
from raymae.serving.http.openapi import document
from raymae.serving.http.sample import sample
from tests.support.audio_files import TINY_AUDIO, encoded
from tests.support.serving import NAMES, ask, serving, write_small_classifier

LIMITS = ServeConfig(max_mb=1, max_minutes=0.5, queue=4)


@pytest.fixture(scope="module", params=["single", "multi"])
def port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = write_small_classifier(tmp_path_factory.mktemp("classifier"), request.param)
    with serving(Predictor(folder, threads=1), LIMITS) as (port, _):
        yield port


def check(described: dict[str, Any], method: str, path: str, status: int, content: Any) -> None:
    """Raise unless the description allows an answer."""
    response = described["paths"][path][method.lower()]["responses"][str(status)]
    schema = response["content"]["application/json"]["schema"]
    jsonschema.validate(content, schema | {"components": described["components"]})


def test_every_answer_is_as_described(port: int) -> None:
    described = ask(port, path="/openapi.json")[1]
    for path in ("/health", "/openapi.json"):
        check(described, "GET", path, 200, ask(port, path=path)[1])
    silent = encoded(n_samples=4 * TINY_AUDIO.n_samples)
    for body in (silent, b"<html>", bytes(1_000_001), encoded(n_samples=31 * TINY_AUDIO.sample_rate, format="FLAC")):
        for path in ("/", "/?spectrogram=true"):
            status, content, _ = ask(port, body, path=path)
            check(described, "POST", "/", status, content)
            assert ("spectrogram" in content) == (status == 200 and "?" in path)
    status, content, _ = ask(port, path="/health", host="attacker.example")
    check(described, "GET", "/health", status, content)
    with pytest.raises(jsonschema.ValidationError):
        check(described, "POST", "/", 200, content)


def test_every_path_is_described_and_answers(port: int) -> None:
    described = ask(port, path="/openapi.json")[1]
    gets = [path for path, methods in described["paths"].items() if "get" in methods]
    assert {ask_status(port, path) for path in gets} == {200}
    page = ask(port)[1]
    assert all(f'href="{path.removeprefix("/")}"' in page for path in ("/openapi.json", "/metrics"))


def ask_status(port: int, path: str) -> int:
    """The status of a path, whatever it answers."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


def test_the_description_is_valid_openapi() -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(document(LIMITS, NAMES))


def test_errors_name_the_formats(port: int) -> None:
    for body in (b"<html>", b""):
        words = ask(port, body)[1]["error"]
        assert all(name in words for name in formats())
    assert {"WAV", "FLAC", "MP3"} <= set(formats())
    assert "formats" not in ask(port, encoded()[:-100])[1]["error"], "of a truncated file they don't help"


@pytest.mark.parametrize("limits", [ServeConfig(), ServeConfig(max_minutes=0.05), ServeConfig(max_mb=0.1)])
def test_the_sample_keeps_the_limits_and_is_the_same_every_time(limits: ServeConfig) -> None:
    made = sample(limits)
    assert len(made) <= limits.max_bytes
    wave, rate = soundfile.read(io.BytesIO(made))
    assert len(wave) / rate <= min(30, 60 * limits.max_minutes)
    assert len(wave) / rate > 2.9
    assert abs(wave).max() > 0.01
    assert sample(limits) == made


def test_the_sample_is_answered(port: int) -> None:
    status, content, _ = ask(port, sample(LIMITS))
    assert status == 200
    assert content["duration"] == pytest.approx(30, abs=0.01)
