"""A classifier over HTTP, without Ray: answers, limits, errors, batches."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.audio.logmel import band_centres
from raymae.config import ServeConfig
from raymae.inference.predictor import Predictor
from raymae.serving.http import upload
from raymae.serving.http.batching import Batcher
from raymae.serving.http.spectrogram import COLUMNS, Spectrogram
from raymae.serving.http.upload import TooLargeError, UploadError, file_of, read_body
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO, encoded
from tests.support.odd_audio import flac_of_count
from tests.support.serving import NAMES, Held, ask, serving, until, write_small_classifier

RATE, CLIP = TINY_AUDIO.sample_rate, TINY_AUDIO.n_samples
LIMITS = ServeConfig(max_mb=0.5, max_minutes=0.5, queue=40, batch=4)
FORM = {"content_type": "multipart/form-data; boundary=XX"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return write_small_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def predictor(folder: Folder) -> Predictor:
    return Predictor(folder, threads=1)


@pytest.fixture(scope="module")
def port(predictor: Predictor) -> Iterator[int]:
    with serving(predictor, LIMITS) as (port, _):
        yield port


@pytest.fixture
def held(folder: Folder) -> Iterator[Held]:
    predictor = Held(folder)
    yield predictor
    predictor.decode.set()
    predictor.network.set()


def form(content: bytes, before: bytes = b"") -> bytes:
    """A multipart body of one field and one file."""
    return (
        before + b'--XX\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n--XX\r\n'
        b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + content + b"\r\n--XX--\r\n"
    )


# Answers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_samples", [100, CLIP, 11 * CLIP + 1000])
def test_an_answer_is_what_the_predictor_says(port: int, predictor: Predictor, n_samples: int) -> None:
    content = encoded(n_samples=n_samples)
    status, found, headers = ask(port, content)
    assert status == 200
    assert headers["cache-control"] == "no-store"
    expected = predictor(content)
    assert list(found) == ["scene_label", "confidence", "probabilities", "duration", "scenes", "windows"]
    assert found["probabilities"] == pytest.approx(expected, abs=1e-5)
    assert found["scene_label"] == max(expected, key=lambda name: expected[name])
    assert found["confidence"] == max(found["probabilities"].values())
    assert found["duration"] == pytest.approx(n_samples / RATE, abs=1e-3)
    for one, (start, end, values) in zip(found["windows"], predictor.windows(content), strict=True):
        assert (one["start"], one["end"]) == pytest.approx((start, end), abs=1e-3)
        assert list(one["probabilities"].values()) == pytest.approx(values.tolist(), abs=1e-5)


def test_raw_chunked_and_multipart_bodies_say_the_same(port: int) -> None:
    content = encoded(format="FLAC")
    expected = ask(port, content)[:2]
    assert expected[0] == 200
    assert ask(port, iter([content[:1000], b"", content[1000:]]))[:2] == expected
    assert ask(port, form(content), **FORM)[:2] == expected
    assert ask(port, form(content, b"a preamble\r\n"), **FORM)[:2] == expected


def test_multi_label_clips(tmp_path: Path) -> None:
    predictor = Predictor(write_small_classifier(tmp_path, "multi"), threads=1)
    content = encoded(n_samples=3 * CLIP)
    with serving(predictor, LIMITS) as (port, _):
        found = ask(port, content)[1]
        assert ask(port, path="/health")[1]["labels"] == "multi"
    expected = predictor(content)
    assert found["probabilities"] == pytest.approx(expected, abs=1e-5)
    assert found["scene_label"] == predictor.label(np.array(list(expected.values())))[0]
    assert sum(expected.values()) != pytest.approx(1, abs=1e-3)


def test_health_says_what_is_served(port: int) -> None:
    status, found, _ = ask(port, path="/health")
    assert status == 200
    assert found["classifier"] == "a classifier"
    assert found["classes"] == NAMES
    assert (found["max_mb"], found["max_minutes"]) == (0.5, 0.5)


def test_the_page_needs_nothing_else_and_its_policy_forbids_it(port: int) -> None:
    status, page, headers = ask(port)
    assert status == 200
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert len(re.findall(r"'sha256-[\w+/=]+'", policy)) == 2
    own = '"(data:|openapi.json"|metrics"|health")'
    assert not re.search(rf"""(src|href|action)=(?!{own})""", page), "it asks for something else"
    assert not re.search(r"""https?://(?!www\.w3\.org/2000/svg)""", page)
    assert not re.search(r"""\s(on\w+|style)=["']|innerHTML""", page), "the policy forbids it"


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"", {}, 400, "empty file"),
        (b"<html>", {}, 400, "can't be decoded"),
        (encoded()[:-100], {}, 400, "truncated: 100 bytes"),
        (encoded(n_samples=0), {}, 400, "no samples"),
        (form(b"text"), FORM, 400, "can't be decoded"),
        (form(encoded())[:-12], FORM, 400, "ends within a part"),
        (b"--XX--\r\n", FORM, 400, "without a file"),
        (encoded(), {"content_type": "multipart/form-data"}, 400, "without a boundary"),
        (bytes(500_001), {}, 413, "larger than 0.5 MB"),
        (encoded(n_samples=31 * RATE, format="FLAC"), {}, 422, "longer than 0.5 minutes"),
        (flac_of_count(np.zeros((800, 1)), 36_000 * 32_000), {}, 422, "longer than 0.5 minutes"),
    ],
)
def test_a_body_that_is_not_a_recording_is_refused_with_the_reason(
    port: int, body: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    found, content, _ = ask(port, body, **headers)
    assert (found, list(content)) == (status, ["error"])
    assert words in content["error"]
    assert "Traceback" not in content["error"]


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/x", "GET", 404), ("/", "PUT", 405), ("/health", "POST", 405)]
)
def test_unknown_paths_and_methods_are_refused(port: int, path: str, method: str, status: int) -> None:
    found, content, _ = ask(port, path=path, method=method)
    assert found == status
    assert f"{method} {path}: " in content["error"]


def test_an_internal_error_hides_its_details(folder: Folder) -> None:
    class Broken(Predictor):
        def of_clips(self, clips: Any) -> Any:
            raise RuntimeError("secret")

    with serving(Broken(folder, threads=1), LIMITS) as (port, _):
        status, content, _ = ask(port, encoded())
        assert (status, content) == (500, {"error": "internal error; see the server's log"})
        assert ask(port, path="/health")[0] == 200


# Limits --------------------------------------------------------------------------------------------------------------


def test_a_body_without_end_is_not_read_to_its_end(port: int) -> None:
    """No header gives its size; the answer comes while the body is still being sent."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(60)
        client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(6):
            client.sendall(b"186a0\r\n" + bytes(100_000) + b"\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 413 ")
    assert ask(port, encoded())[0] == 200


def test_a_body_is_read_in_pieces_up_to_the_limit() -> None:
    taken = []

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(10):
            taken.append(number)
            yield bytes(10)

    assert asyncio.run(read_body(pieces(), 100)) == bytes(100)
    taken.clear()
    with pytest.raises(TooLargeError):
        asyncio.run(read_body(pieces(), 35))
    assert taken == [0, 1, 2, 3]


def test_an_upload_that_stalls_ends_with_408(predictor: Predictor) -> None:
    with (
        serving(predictor, replace(LIMITS, timeout_seconds=0.3)) as (port, service),
        socket.create_connection(("127.0.0.1", port)) as client,
    ):
        client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nRIFF")
        client.settimeout(60)
        head = client.recv(65536).decode()
        assert head.startswith("HTTP/1.1 408 ")
        until(lambda: service.ongoing == 0)


def test_a_body_of_which_nothing_more_comes_ends_with_408(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "STALL_SECONDS", 0.3)
    with serving(predictor, LIMITS) as (port, _), socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nRIFF")
        client.settimeout(60)
        head = client.recv(65536).decode()
        assert head.startswith("HTTP/1.1 408 ")
        assert "nothing of the upload came for 0.3 s" in head + client.recv(65536).decode()


def test_slow_uploads_take_no_place_in_the_queue(predictor: Predictor) -> None:
    """As many connections as the queue has places and more, with two bytes of their bodies each."""
    with serving(predictor, replace(LIMITS, queue=2)) as (port, service), contextlib.ExitStack() as stack:
        for _ in range(60):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nRI")
        until(lambda: service.uploads.bytes == 120)
        assert ask(port, encoded())[0] == 200
    assert service.ongoing == 0


def test_all_uploads_together_have_a_limit(predictor: Predictor) -> None:
    with serving(predictor, replace(LIMITS, max_mb=0.1)) as (port, service), contextlib.ExitStack() as stack:
        for _ in range(9):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\n" + bytes(85_000))
        until(lambda: service.uploads.bytes >= 700_000)
        status, content, headers = ask(port, bytes(99_000))
        assert (status, headers["retry-after"]) == (503, "1")
        assert "too many uploads" in content["error"]
    until(lambda: service.uploads.bytes == 0)


@pytest.mark.parametrize("host", ["attacker.example", "attacker.example:80", "127.0.0.1.attacker.example", "", "x@y"])
def test_a_name_that_only_leads_to_this_machine_is_refused(port: int, host: str) -> None:
    for body in (None, encoded()):
        status, content, _ = ask(port, body, host=host)
        assert (status, list(content)) == (403, ["error"])
        assert "is not this machine" in content["error"]


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "127.1.2.3"])
def test_this_machines_names_are_answered(port: int, host: str) -> None:
    assert ask(port, path="/health", host=host)[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://localhost:8000"}, 200),
        ({"origin": "http://localhost:8000", "sec_fetch_site": "same-origin"}, 200),
        ({"sec_fetch_site": "none"}, 200),
        ({"origin": "https://attacker.example"}, 403),
        ({"origin": "http://localhost:9000"}, 403),
        ({"origin": "null"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
    ],
)
def test_what_other_sites_post_is_refused(port: int, headers: dict[str, str], status: int) -> None:
    assert ask(port, encoded(), host="localhost:8000", **headers)[0] == status


def test_a_server_for_others_is_asked_by_any_name(predictor: Predictor) -> None:
    with serving(predictor, replace(LIMITS, host="0.0.0.0")) as (port, _):
        assert ask(port, path="/health", host="scenes.example")[0] == 200
        assert ask(port, encoded(), host="scenes.example", origin="https://attacker.example")[0] == 403


def test_work_that_takes_too_long_is_dropped(held: Held) -> None:
    held.network.clear()
    with serving(held, replace(LIMITS, timeout_seconds=0.5)) as (port, service):
        status, content, _ = ask(port, encoded(n_samples=30 * CLIP))
        assert status == 504
        assert "within 0.5 s" in content["error"]
        assert service.ongoing == 0
        held.network.set()
        assert ask(port, encoded())[0] == 200
    assert held.batches[0] <= 4
    assert sum(held.batches) <= held.batches[0] + 2, "clips of a request that was given up were classified"


def test_requests_beyond_the_queue_get_503_at_once(held: Held) -> None:
    held.network.clear()
    with serving(held, replace(LIMITS, queue=2)) as (port, service), ThreadPoolExecutor(2) as pool:
        first = [pool.submit(ask, port, encoded()) for _ in range(2)]
        until(lambda: service.ongoing == 2)
        status, content, headers = ask(port, encoded())
        assert status == 503
        assert headers["retry-after"] == "1"
        assert "try again" in content["error"]
        held.network.set()
        assert [one.result()[0] for one in first] == [200, 200]
        assert ask(port, encoded())[0] == 200


def test_decoding_does_not_block_other_requests(held: Held) -> None:
    held.decode.clear()
    with serving(held, LIMITS) as (port, service), ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, port, encoded()) for _ in range(8)]
        until(lambda: service.ongoing == 8)
        assert ask(port, path="/health")[0] == 200
        held.decode.set()
        assert {one.result()[0] for one in asked} == {200}


def test_concurrent_requests_share_forward_passes(held: Held) -> None:
    held.network.clear()
    contents = [encoded(seed, n_samples=CLIP) for seed in range(9)]
    expected = [Predictor.of_clips(held, list(held.clips(held.waveform(one))))[0] for one in contents]
    with serving(held, LIMITS) as (port, service), ThreadPoolExecutor(9) as pool:
        asked = [pool.submit(ask, port, one) for one in contents]
        until(lambda: service.batcher.items.qsize() + sum(held.batches) == 9)
        held.network.set()
        answers = [one.result() for one in asked]
    assert max(held.batches) == LIMITS.batch
    for (status, found, _), values in zip(answers, expected, strict=True):
        assert status == 200
        assert list(found["probabilities"].values()) == pytest.approx(values.tolist(), abs=1e-5)


@pytest.mark.parametrize(("name", "value"), [("port", 0), ("port", 70_000), ("batch", 0), ("queue", 0), ("max_mb", 0)])
def test_wrong_limits_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"serve\.{name} = {value} must"):
        ServeConfig(**{name: value})


def test_nothing_listens_beyond_this_machine_unless_asked() -> None:
    assert ServeConfig().host == "127.0.0.1"


# Batches -------------------------------------------------------------------------------------------------------------


def test_items_that_arrive_during_a_batch_form_the_next() -> None:
    go, batches = threading.Event(), []

    def double(items: Any) -> list[int]:
        batches.append(list(items))
        assert go.wait(60)
        return [2 * item for item in items]

    batcher: Batcher[int, int] = Batcher(double, size=3, waiting=10)
    futures = [batcher.submit(0)]
    until(lambda: batches)
    futures += [batcher.submit(number) for number in range(1, 8)]
    assert futures[2].cancel()
    go.set()
    assert [one.result(60) for one in futures if not one.cancelled()] == [0, 2, 6, 8, 10, 12, 14]
    assert batches == [[0], [1, 3], [4, 5, 6], [7]]
    with pytest.raises(CancelledError):
        futures[2].result()
    batcher.close()
    assert not batcher.thread.is_alive()


def test_an_error_goes_to_its_batch_alone() -> None:
    def half(items: Any) -> list[float]:
        return [1 / item for item in items]

    batcher: Batcher[int, float] = Batcher(half, size=1, waiting=10)
    futures = [batcher.submit(number) for number in (1, 0, 2)]
    assert futures[0].result(60) == 1
    with pytest.raises(ZeroDivisionError):
        futures[1].result(60)
    assert futures[2].result(60) == 0.5
    batcher.close()


def test_submit_blocks_when_the_queue_is_full() -> None:
    go = threading.Event()
    batcher: Batcher[int, int] = Batcher(lambda items: go.wait(60) and items, size=1, waiting=2)
    submitted: list[int] = []

    def submit() -> None:
        for number in range(10):
            batcher.submit(number)
            submitted.append(number)

    thread = threading.Thread(target=submit)
    thread.start()
    until(lambda: batcher.items.full())
    assert len(submitted) <= 4
    go.set()
    thread.join()
    assert len(submitted) == 10
    batcher.close()


# Uploads -------------------------------------------------------------------------------------------------------------


@given(content=st.binary(max_size=300), boundary=st.from_regex(r"[0-9A-Za-z'_-]{1,40}", fullmatch=True))
def test_a_file_comes_out_of_a_form_as_it_went_in(content: bytes, boundary: str) -> None:
    body = form(content).replace(b"--XX", b"--" + boundary.encode())
    if b"--" + boundary.encode() not in content and b"--XX" not in content:
        assert file_of(body, f'multipart/form-data; boundary="{boundary}"') == content


@given(
    body=st.binary(max_size=200),
    pieces=st.lists(st.sampled_from([b"--XX", b"\r\n", b"\r\n\r\n", b"--", b'; filename="'])),
)
def test_any_body_is_a_file_or_an_upload_error(body: bytes, pieces: list[bytes]) -> None:
    assert file_of(body, "audio/wav") == file_of(body, "") == body
    with contextlib.suppress(UploadError):
        assert isinstance(file_of(b"".join(pieces) + body, FORM["content_type"]), bytes)


def test_a_form_of_endless_parts_is_given_up() -> None:
    part = b"--XX\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n"
    with pytest.raises(UploadError, match="without a file"):
        file_of(part * 100_000 + form(encoded()), FORM["content_type"])


# Spectrogram ---------------------------------------------------------------------------------------------------------


def picture(predictor: Predictor, waveform: Any) -> tuple[dict[str, Any], Any]:
    drawn = Spectrogram(TINY_AUDIO, len(waveform))
    for clip in predictor.clips(np.asarray(waveform, np.float32)):
        drawn.add(clip)
    found = drawn.to_json()
    values = np.frombuffer(base64.b64decode(found["values"]), np.uint8)
    return found, values.reshape(found["bands"], found["columns"])


@pytest.mark.parametrize("seconds", [0.05, 0.64, 3.0, 20.0])
def test_a_tone_is_drawn_where_and_when_it_sounds(predictor: Predictor, seconds: float) -> None:
    time = np.arange(round(seconds * RATE)) / RATE
    tone = 0.5 * np.sin(2 * np.pi * 1000 * time) * (time > seconds / 2)
    found, values = picture(predictor, tone)
    assert found["columns"] <= COLUMNS
    band = int(np.abs(np.array(found["hertz"]) - 1000).argmin())
    loudest = values[:, values.sum(axis=0).argmax()].argmax()
    assert abs(int(loudest) - band) <= 1
    assert values.max() == 255
    half = found["columns"] // 2
    if seconds > 0.1:
        assert values[band, : half - 3].max() < 128 < values[band, half + 3 : -3].min()


def test_bands_lie_where_the_filters_are_largest() -> None:
    from raymae.audio.logmel import mel_bank

    for audio in (TINY_AUDIO, replace(TINY_AUDIO, mel_scale="slaney")):
        fine = replace(audio, n_fft=2**14, clip_seconds=5.0)
        peaks = mel_bank(fine).argmax(axis=1) * fine.sample_rate / fine.n_fft
        np.testing.assert_allclose(band_centres(fine), peaks, atol=fine.sample_rate / fine.n_fft)


def test_a_spectrogram_comes_with_the_answer_if_asked_for(port: int) -> None:
    found = ask(port, encoded(n_samples=4 * CLIP), path="/?spectrogram=true")[1]
    assert found["spectrogram"]["bands"] == len(found["spectrogram"]["hertz"]) == TINY_AUDIO.n_mels
    size = found["spectrogram"]["bands"] * found["spectrogram"]["columns"]
    assert len(base64.b64decode(found["spectrogram"]["values"])) == size
