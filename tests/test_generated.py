"""Whatever arrives is answered, and arrives as the model's own server would have it: with generated
input.

`--hypothesis-profile thorough` runs eight times as many cases.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conftest import (
    BASE,
    LIVE_APPS,
    ROOT,
    Answer,
    Process,
    answering,
    free_port,
    request,
    running,
    start_container,
    web_action,
)
from hypothesis import given, settings
from hypothesis import strategies as st

TOKEN = "!#$%&'*+-.^`|~" + "0123456789" + "abcdefghijklmnopqrstuvwxyz"
pytestmark = pytest.mark.stacks(1)  # what this asks for has nothing to do with the others
SHARE = settings().max_examples / 800  # of the thorough profile's (conftest.py)


def cases(thorough: int) -> settings:
    return settings(max_examples=max(1, int(thorough * SHARE)))


def mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(usual, usual, usual, anything)


texts = st.text(st.characters(exclude_categories=()), max_size=20)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
kinds = [
    "application/json",
    "text/plain; charset=x",
    "image/png",
    "application/x-www-form-urlencoded",
    "a+json",
    ";",
    "",
]
headers = st.dictionaries(
    st.sampled_from(["content-type", "host", "accept", "x-forwarded-for"]) | texts, mostly(texts)
)
values = st.fixed_dictionaries(
    {},
    optional={
        "__ow_method": mostly(st.sampled_from(["get", "post", "put", "head", "brew"])),
        "__ow_path": mostly(texts),
        "__ow_query": mostly(texts),
        "__ow_body": mostly(
            st.binary(max_size=40).map(lambda data: base64.b64encode(data).decode())
        ),
        "__ow_headers": mostly(
            st.builds(
                lambda some, kind: {**some, "content-type": kind},
                headers,
                mostly(st.sampled_from(kinds)),
            )
        ),
        "__ow_user": mostly(texts),
        "a": anything,
    },
)
messages = st.one_of(
    anything,
    st.fixed_dictionaries(
        {"value": mostly(values)},
        optional={
            "action_name": mostly(st.sampled_from(["/guest/a", "/guest/b/c", "/"])),
            "activation_id": mostly(texts),
            "deadline": mostly(st.integers().map(str)),
            "namespace": mostly(texts),
        },
    ),
)


@pytest.fixture(scope="module")
def own(stack: str) -> Iterator[Process]:
    """The recorder behind Werkzeug's server, as a model's own server is."""
    port = free_port()
    with running(
        Process(stack, "app.py", str(port), cwd=LIVE_APPS / "recorder", port=port)
    ) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def action(recorder: Process) -> Iterator[int]:
    with web_action(recorder.port) as port:
        yield port


@cases(6_800)
@given(message=messages)
def test_every_message_is_answered_with_a_result(message: Any, recorder: Process) -> None:
    answer = recorder.post("/run", json.dumps(message).encode(), seconds=10)
    assert answer.status == 200


@cases(400)
@given(
    message=st.binary(max_size=200)
    | st.binary(max_size=50).map(lambda data: b'{"value": {"a": "' + data)
)
def test_every_body_is_answered_with_a_result(message: bytes, recorder: Process) -> None:
    assert recorder.post("/run", message, seconds=10).status == 200


lines = st.sampled_from(
    [b"POST /run HTTP/1.1", b"POST /init HTTP/1.1", b"GET / HTTP/1.0", b"POST /run", b"\0\xff", b""]
)
fields = st.sampled_from(
    [
        b"Content-Length: 2",
        b"Content-Length: 9",
        b"Content-Length: -1",
        b"Content-Length: x",
        b"Content-Length: 2, 2",
    ]
    + [
        b"Transfer-Encoding: chunked",
        b"Expect: 100-continue",
        b"Host: x",
        b" folded",
        b"no colon",
        b"X: \0",
        b"X" * 70_000,
    ]
)


@cases(600)
@given(
    line=lines | st.binary(max_size=30),
    some=st.lists(fields | st.binary(max_size=30), max_size=6),
    body=st.sampled_from([b"{}", b"2\r\n{}\r\n0\r\n\r\n", b"ffffffffff\r\n{}", b"-1\r\n", b""])
    | st.binary(max_size=30),
)
def test_every_request_is_answered_or_refused(
    line: bytes, some: list[bytes], body: bytes, recorder: Process
) -> None:
    with socket.create_connection(("127.0.0.1", recorder.port), timeout=10) as client:
        try:
            client.sendall(b"\r\n".join([line, *some, b"", body]))
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
        except TimeoutError:
            raise
        except OSError:  # refused before it was read
            pass
    assert recorder.popen.poll() is None


def test_ten_thousand_headers_are_refused(recorder: Process) -> None:
    answer = request(
        recorder.port, "GET", "/", None, [(f"X-{number}", "x") for number in range(10_000)]
    )
    assert answer.status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


segments = st.text(st.sampled_from("abc é大%/+;=&?#~'\"<>\\\t"), min_size=1, max_size=8).filter(
    lambda text: text != ".."
)
header_texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20).map(
    str.strip
)
names = st.text(TOKEN, min_size=1, max_size=12).map(lambda name: "x-" + name)
plain_names = st.from_regex(
    "x(-[a-z0-9]{1,6}){1,3}", fullmatch=True
)  # as wsgiref.validate wants them
TEXT_KINDS = ["text/plain", "text/csv", "application/xml"]
BINARY_KINDS = [
    "application/json",
    "image/png",
    "multipart/form-data; boundary=x",
    "application/x-acme; a=1",
]


@cases(360)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE"]),
    path=st.lists(segments, max_size=4),
    query=st.lists(st.tuples(segments, segments), max_size=4),
    some=st.dictionaries(names, header_texts, max_size=4),
    body=st.binary(max_size=60) | st.binary(min_size=70_000, max_size=70_100),
    text=st.booleans(),
    kind=st.sampled_from(range(3)),
)
def test_the_app_sees_the_request_that_its_own_server_shows_it(
    method: str, path: list[str], query: Any, some: dict[str, str], body: bytes, text: bool, kind: int,
    own: Process, action: int,
) -> None:  # fmt: skip
    target = "/" + "/".join(quote(segment, safe="") for segment in ["seen", *path])
    target += "?" + "&".join(
        quote(name, safe="") + "=" + quote(value, safe="") for name, value in query
    )
    data = body.decode("latin-1").encode() if text else body
    sent_body = (
        None if not data and method in ("GET", "DELETE") else data
    )  # a Content-Length of 0 is for the others
    sent = {
        "Host": "model.example.com",
        **some,
        "Content-Type": (TEXT_KINDS if text else BINARY_KINDS)[kind],
    }
    expected = shown(request(own.port, method, target, sent_body, sent))
    seen = shown(request(action, method, BASE + target, sent_body, sent))
    assert seen.pop("SCRIPT_NAME") == BASE
    assert seen == {name: value for name, value in expected.items() if name != "SCRIPT_NAME"}


def shown(answer: Answer) -> dict[str, str]:
    """What of an environ is the request's; escapes of a query in one spelling."""
    environ: dict[str, str] = answer.json
    keys = [
        key
        for key in environ
        if re.match("HTTP_|CONTENT_|PATH_INFO|REQUEST_METHOD|SCRIPT_NAME|body", key)
    ]
    decoded = re.sub(
        "%([0-9A-F]{2})",
        lambda found: chr(int(found[1], 16)),
        environ["QUERY_STRING"].replace("+", " "),
    )
    return {
        **{key: environ[key] for key in keys},
        "QUERY_STRING": decoded,
        "SCRIPT_NAME": environ["SCRIPT_NAME"],
    }


types = st.sampled_from(
    TEXT_KINDS
    + BINARY_KINDS
    + ["text/html; charset=utf-8", "image/svg+xml", "text/x-acme", "a/b+json"]
)
statuses = st.integers(200, 599).filter(lambda status: status not in (204, 205, 304))


@cases(360)
@given(
    status=statuses,
    kind=types,
    some=st.dictionaries(plain_names, header_texts, max_size=4),
    body=st.binary(min_size=1, max_size=60),
)
def test_the_client_sees_the_response_of_the_models_own_server(
    status: int, kind: str, some: dict[str, str], body: bytes, own: Process, action: int
) -> None:
    if kind in TEXT_KINDS or "charset" in kind:
        body = body.decode("latin-1").encode()
    listed = [["Content-Type", kind], ["Content-Length", str(len(body))], *map(list, some.items())]
    query = "/x?" + answering(status, listed, body)
    expected, seen = request(own.port, "GET", query), request(action, "GET", BASE + query)
    assert (seen.status, seen.body) == (expected.status, expected.body)
    for name, value in some.items():
        assert seen.header(name) == expected.header(name) == value
    kinds = [
        str(got.header("content-type")).lower().replace("; charset=utf-8", "")
        for got in (seen, expected)
    ]
    assert kinds[0] == kinds[1]


def test_schemathesis_finds_no_failure_that_the_models_own_server_does_not_have(
    stack: str, tmp_path: Path
) -> None:
    app, port = ROOT / "examples" / "ocr", free_port()
    code = f"""import runpy, maxfw.core
maxfw.core.MAXApp.run.__defaults__ = ("127.0.0.1", {port})
runpy.run_path("app.py", run_name="__main__")"""
    program = str(Path(sys.executable).parent / "schemathesis")
    options = [
        "--seed",
        "1",
        "--max-examples",
        str(max(5, int(40 * SHARE))),
        "--continue-on-failure",
        "--baseline",
        "known.json",
    ]
    command = [
        program,
        "run",
        *options,
        "--exclude-checks",
        "unsupported_method",
    ]  # OpenWhisk itself refuses TRACE
    with (
        running(Process(stack, "-c", code, cwd=app, port=port)) as own,
        running(start_container(stack, app)) as container,
        web_action(container.port) as web_port,
    ):
        own.wait_ready()
        url = f"http://127.0.0.1:{own.port}/swagger.json"
        done = subprocess.run(
            [*command, "--baseline-update", url], cwd=tmp_path, capture_output=True, text=True
        )
        assert "Tested: 2\n" in done.stdout
        assert "UndefinedStatusCode" in (tmp_path / "known.json").read_text()
        url = f"http://127.0.0.1:{web_port}{BASE}/swagger.json"
        done = subprocess.run([*command, url], cwd=tmp_path, capture_output=True, text=True)
        assert "Tested: 2\n" in done.stdout
        assert done.returncode == 0, done.stdout


def test_the_process_is_as_small_as_before(recorder: Process) -> None:
    """Runs last: threads and file descriptors are those of an idle container."""
    folder = f"/proc/{recorder.popen.pid}"
    request(recorder.port, "GET", "/")
    assert len(os.listdir(f"{folder}/fd")) < 20
    assert len(os.listdir(f"{folder}/task")) < 10
