"""What the caller of a web action sees when things go wrong: the README's table, row by row."""

from __future__ import annotations

import re

import pytest
from conftest import BASE, LIVE_APPS, ROOT, request, running, start_container, web_action

import devserver

FAILED = "The request failed; the log says why."
GENERIC = "There was an error processing your request."
FAULTS = {  # path, size of the body, seconds of the time limit -> status, sentence
    "the model raises": (f"{BASE}/raise", 0, 60.0, 500, FAILED),
    "the model raises in the middle of its answer": (f"{BASE}/raise-late", 0, 60.0, 500, FAILED),
    "the model calls sys.exit": (f"{BASE}/exit", 0, 60.0, 500, FAILED),
    "the model answers with no HTTP status": (f"{BASE}/status/700", 0, 60.0, 500, "The model answered with status 700"),
    "the answer is too large": (f"{BASE}/bytes/2000000", 0, 60.0, 500, "The answer takes 2666"),
    "the model's process ends": (f"{BASE}/os-exit", 0, 2.5, 400, GENERIC),
    "the model hangs until the time limit": (f"{BASE}/sleep/9.0", 0, 2.5, 400, GENERIC),
    "the caller has waited for 60 s": (f"{BASE}/sleep/9.0", 0, 300.0, 202, "Response not yet ready."),
    "the request is too large": (f"{BASE}/upload", 1_048_577, 60.0, 413, "Request larger than allowed"),
    "the URL is another one": ("/api/v1/web/guest/default/max", 0, 60.0, 404, "The requested resource does not exist."),
}
ROWS = re.findall(r"^\| `(\d{3}) (.*?)…?` \|", (ROOT / "README.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_caller_is_told(stack: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, size, timeout, status, sentence = FAULTS[fault]
    monkeypatch.setattr(devserver, "BLOCKING_SECONDS", 60 if timeout <= 60 else 1)
    with (
        running(start_container(stack, LIVE_APPS / "flask_app", SECRET="secret")) as container,
        web_action(container.port, timeout=timeout) as port,
    ):
        answer = request(port, "POST" if size else "GET", path, bytes(size) if size else None)
        assert (answer.status, answer.header("content-type")) == (status, "application/json")
        assert answer.json["error"].startswith(sentence)
        assert not re.search(f"secret|Traceback|{ROOT}", answer.body.decode())
        assert any(status == int(row) and sentence.startswith(start) for row, start in ROWS), "the README tells it too"


def test_the_readme_tells_of_no_other_fault() -> None:
    told = {(status, sentence) for *_, status, sentence in FAULTS.values()}
    for status, start in ROWS:
        assert any(int(status) == code and sentence.startswith(start) for code, sentence in told), start


def test_a_model_that_does_not_load_is_told_to_the_developer(stack: str) -> None:
    """The caller sees the generic 400 then (tests/recordings/README.md), devserver.py's user the reason."""
    with (
        running(start_container(stack, LIVE_APPS / "broken")) as container,
        pytest.raises(ConnectionError, match="OSError: no weights"),
        web_action(container.port),
    ):
        pass
