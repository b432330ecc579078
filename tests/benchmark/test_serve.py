"""Parts of `benchmark serve` that run without Ray: the clients, the bare side and the rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymae.benchmark.speed.serve import CLIPS, Load, Serve, classify_together, expect, wav
from raymae.config import ModelConfig, ServeConfig
from raymae.inference.predictor import Predictor
from raymae.storage.folder import Folder
from tests.support.audio_files import encoded
from tests.support.serving import Held, ask, serving, until, write_small_classifier

VALUES = {"served_ms": 60.0, "bare_ms": 50.0, "clips_per_second": 8.0, "bare_clips_per_second": 20.0, "errors": 3}


def test_clients_count_responses_and_errors(tmp_path: Path) -> None:
    held = Held(write_small_classifier(tmp_path))
    with serving(held, ServeConfig(queue=4)) as (port, service):
        load = Load(port, [encoded(seed) for seed in range(3)], clients=4)
        correct = load.run(0.3)
        assert correct == load.answers >= 4
        assert load.errors == 0
        with service.admitted():  # takes one place, so one client is too many
            correct += load.run(0.3)
        assert load.errors > 0
        assert correct == load.answers - load.errors
        until(lambda: service.ongoing == 0)
        assert ask(port, encoded())[0] == 200


def test_bare_side_classifies_the_files_of_the_clients(tmp_path: Path) -> None:
    part = Serve(clip_seconds=1.0, model=ModelConfig(embed_dim=16, depth=1, num_heads=2))
    part.write_classifier(Folder(str(tmp_path)))
    predictor = Predictor(str(tmp_path), threads=1)
    files = [wav(1.0, seed) for seed in range(CLIPS)]
    assert len(set(files)) == CLIPS
    assert classify_together(predictor, files, 0.01) % CLIPS == 0
    assert len(predictor.windows(files[0])) == 1, "a file is one clip"


def test_unexpected_status_raises(tmp_path: Path) -> None:
    import http.client

    with serving(Predictor(write_small_classifier(tmp_path), threads=1), ServeConfig()) as (port, _):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        expect(connection, encoded(), 200)
        expect(connection, b"no audio", 400)
        with pytest.raises(RuntimeError, match="status 400 instead of 200"):
            expect(connection, b"no audio", 200)
        connection.close()


def test_ratios_and_goals() -> None:
    latency, throughput = Serve().rows(VALUES)
    assert latency.verdict == "1.20 x  (goal ≤ 1.5)"
    assert throughput.verdict == "0.40 x  (goal ≥ 0.8, missed)"
    assert "3 errors" in throughput.what
    with pytest.raises(ValueError, match="must be positive"):
        Serve(turns=0).run()
