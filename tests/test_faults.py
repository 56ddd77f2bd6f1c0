"""What the caller of a web action sees when things go wrong: the README's table, row by row."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from conftest import BASE, ROOT, OpenWhisk, Process, WebAction, web_action

import devserver

pytestmark = pytest.mark.stacks(1)  # what this asks for has nothing to do with the others
GENERIC = "There was an error processing your request."
LONG, SHORT, USUAL = 300, 5, 60  # the action's time limit in seconds
FAULTS = {  # path, size of the body, time limit -> status, sentence
    "the model raises": ("/raise", 0, USUAL, 500, "The request failed; the log says why."),
    "the answer is too large": ("/bytes/2000000", 0, USUAL, 500, "The answer of 2000000 bytes"),
    "the model's process ends": ("/os-exit", 0, SHORT, 400, GENERIC),
    "the model hangs until the time limit": ("/sleep/70.0", 0, SHORT, 400, GENERIC),
    "the caller has waited for 60 s": ("/sleep/70.0", 0, LONG, 202, "Response not yet ready."),
    "the request is too large": ("/upload", 1_048_577, USUAL, 413, "Request larger than allowed"),
}
FORWARD = (ROOT / "forward.py").read_text()
ROWS = re.findall(r"^\| `(\d{3}) (.*?)…?` \|", (ROOT / "README.md").read_text(), re.MULTILINE)


@pytest.fixture
def action(
    fault: str, openwhisk: OpenWhisk | None, flask_app: Process, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WebAction]:
    """Of the fault's time limit; behind devserver.py every second and minute of OpenWhisk's is
    less."""
    timeout = FAULTS[fault][2]
    if openwhisk:
        yield openwhisk.web_action("flask_app", "ENV SECRET=secret", timeout=timeout)
        return
    monkeypatch.setattr(devserver, "RETRY_SECONDS", 0.01)
    limit, wait = 0.5 if timeout == SHORT else timeout, 1 if timeout == LONG else 60
    with web_action(flask_app.port, timeout=limit, wait=wait) as port:
        yield WebAction(f"http://127.0.0.1:{port}{BASE}")
    flask_app.popen.kill()  # it may still hang


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
