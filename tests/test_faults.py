"""What the caller of a web action sees when things go wrong: the README's table, row by row."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from conftest import (
    BASE,
    FLASK,
    LIVE_APPS,
    ROOT,
    OpenWhisk,
    WebAction,
    running,
    start_container,
    web_action,
)

import devserver

pytestmark = pytest.mark.stacks(1)  # what this asks for has nothing to do with the others
FAILED = "The request failed; the log says why."
GENERIC = "There was an error processing your request."
LONG, SHORT, USUAL = 300, 5, 60  # the action's time limit in seconds
FAULTS = {  # path, size of the body, time limit -> status, sentence
    "the model raises": ("/raise", 0, USUAL, 500, FAILED),
    "the model raises in the middle of its answer": ("/raise-late", 0, USUAL, 500, FAILED),
    "the model calls sys.exit": ("/exit", 0, USUAL, 500, FAILED),
    "the answer is too large": ("/bytes/2000000", 0, USUAL, 500, "The answer of 2000000 bytes"),
    "text in brotli": (
        "/brotli",
        0,
        USUAL,
        500,
        "OpenWhisk carries no text in the Content-Encoding br",
    ),
    "the model's process ends": ("/os-exit", 0, SHORT, 400, GENERIC),
    "the model hangs until the time limit": ("/sleep/70.0", 0, SHORT, 400, GENERIC),
    "the caller has waited for 60 s": ("/sleep/70.0", 0, LONG, 202, "Response not yet ready."),
    "the request is too large": ("/upload", 1_048_577, USUAL, 413, "Request larger than allowed"),
    "the URL is another one": ("x", 0, USUAL, 404, "The requested resource does not exist."),
}
FORWARD = (ROOT / "forward.py").read_text()
ROWS = re.findall(r"^\| `(\d{3}) (.*?)…?` \|", (ROOT / "README.md").read_text(), re.MULTILINE)


@pytest.fixture
def action(
    request: pytest.FixtureRequest,
    openwhisk: OpenWhisk | None,
    stack: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[WebAction]:
    """Of the fault's time limit; behind devserver.py every second and minute of OpenWhisk's is
    less."""
    timeout = FAULTS[request.getfixturevalue("fault")][2]
    if openwhisk:
        yield openwhisk.web_action("flask_app", "ENV SECRET=secret", timeout=timeout)
        return
    monkeypatch.setattr(devserver, "RETRY_SECONDS", 0.01)
    limit = 0.5 if timeout == SHORT else timeout
    with running(start_container(stack, LIVE_APPS / "flask_app", **FLASK)) as container:
        container.post("/init", {"value": {}})
        wait = 1 if timeout == LONG else 60
        with web_action(container.port, timeout=limit, wait=wait) as port:
            yield WebAction(f"http://127.0.0.1:{port}{BASE}")
        container.popen.kill()  # it may still hang


@pytest.mark.openwhisk
@pytest.mark.parametrize("fault", FAULTS)
def test_the_caller_is_told(fault: str, action: WebAction) -> None:
    path, size, _, status, sentence = FAULTS[fault]
    body = bytes(size) if size else None
    answer = action.request("POST" if size else "GET", path, body)
    got = answer.status, answer.header("content-type"), answer.json["error"][: len(sentence)]
    assert got == (status, "application/json", sentence)
    assert not re.search(f"secret|Traceback|{ROOT}", answer.body.decode())


@pytest.mark.parametrize(("status", "start"), ROWS)
def test_the_readme_tells_of_no_other_fault(status: str, start: str) -> None:
    known = {(code, sentence) for *_, code, sentence in FAULTS.values()}
    known |= {(502, sentence) for sentence in re.findall('"(The model.s server .*)"', FORWARD)}
    assert any(int(status) == code and said.startswith(start) for code, said in known)


def test_a_model_that_does_not_load_is_told_to_the_developer(stack: str) -> None:
    """The caller sees the generic 400 then (tests/recordings/README.md), devserver.py's user the
    reason."""
    with (
        running(start_container(stack, LIVE_APPS / "broken")) as container,
        pytest.raises(ConnectionError, match="OSError: no weights"),
        web_action(container.port),
    ):
        pass
