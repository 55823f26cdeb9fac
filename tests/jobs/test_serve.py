"""`lorae serve` answers as `Ensemble.predict`, bounds what it reads, and `lorae verify` finds a member that
is off."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import uvicorn
from starlette.testclient import TestClient
from trained import TEXTS

from jobs import serve
from jobs.cli import main
from jobs.serve import application
from jobs.served import verify
from lorae.engine.ensembles import Ensemble


@pytest.fixture
def ensemble(stored):
    return Ensemble.load(stored.storage, stored.trial)


@pytest.fixture
def client(ensemble):
    return TestClient(application(ensemble))


def test_the_endpoint_says_what_predict_says(client, ensemble):
    found = client.post("/predict", json={"inputs": [TEXTS[0], {"text": TEXTS[1], "id": "b"}]}).json()
    expected = ensemble.predict([TEXTS[0], {"text": TEXTS[1], "id": "b"}])
    rows = found["predictions"]
    assert [row["label"] for row in rows] == list(expected.labels) and rows[1]["id"] == "b"
    members = np.array([row["member_probabilities"] for row in rows]).transpose(1, 0, 2)
    np.testing.assert_allclose(members, expected.member_probabilities, atol=1e-6)
    about = client.get("/health").json()
    assert about["members"] == 3 and about["classes"] == ["red", "green", "blue"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "the body is no JSON"),
        (b"[" * 100_000, 400, "the body is no JSON"),
        (b"[]", 422, 'send {"inputs"'),
        (b'{"inputs": "w1"}', 422, 'send {"inputs"'),
        (b'{"inputs": [1]}', 422, 'send {"inputs"'),
        (b'{"inputs": []}', 422, "nothing to predict"),
        (b'{"inputs": [""]}', 422, "input 0"),
        (b'{"inputs": ["w1"], "coverage": "x"}', 422, "coverage="),
        (b'{"inputs": ["w1"], "coverage": 2}', 422, "coverage="),
        (json.dumps({"inputs": ["w1"] * 257}).encode(), 413, "at most 256"),
        (b" " * (2**20 + 1), 413, "more than 1048576 bytes"),
    ],
    ids=str,
)
def test_what_cannot_be_answered_is_refused(client, body, status, message):
    answer = client.post("/predict", content=body)
    assert answer.status_code == status and message in answer.json()["error"]


def test_media_are_not_served(ensemble):
    images = SimpleNamespace(reads="image")
    with pytest.raises(ValueError, match="reads images; only texts are served"):
        serve.run_server(images, "127.0.0.1", 0)


@pytest.fixture
def url(ensemble):
    """A server of its own, on a free port of 127.0.0.1."""
    server = uvicorn.Server(
        uvicorn.Config(application(ensemble), host="127.0.0.1", port=0, log_level="error")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_verify_finds_the_stored_members_behind_a_url(url, stored, capsys):
    words = ["verify", url, stored.storage, "--trial", stored.trial, "--text", TEXTS[0], "--text", TEXTS[1]]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(line.startswith("ok") for line in lines)
    assert main(["verify", "127.0.0.1:1", *words[2:]]) == 2
    assert "is no URL of a server" in capsys.readouterr().err
    assert main(["verify", "http://127.0.0.1:1", *words[2:]]) == 2
    assert "does not answer as `lorae serve` does" in capsys.readouterr().err


def test_verify_names_the_member_whose_adapter_is_dropped(url, ensemble, monkeypatch):
    """Member 1 without its adapter answers as the backbone; member 2 as member 0."""
    real = Ensemble.predict

    def served(self, inputs, **settings):
        found = real(self, inputs, **settings)
        found.member_probabilities[1] = self.backbone_probabilities(inputs)
        found.member_probabilities[2] = found.member_probabilities[0]
        return found

    monkeypatch.setattr(type(ensemble), "predict", served)
    reference = SimpleNamespace(
        row=ensemble.row,
        predict=lambda texts: real(ensemble, texts),
        backbone_probabilities=ensemble.backbone_probabilities,
    )
    first, second, third = verify(url, reference, TEXTS, None)
    assert not first.is_off and second.is_off and third.is_off
    assert second.like == "the backbone without its adapter"
    assert third.like == f"member {ensemble.row['member_ids'][0]}"
