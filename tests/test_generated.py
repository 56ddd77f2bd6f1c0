"""A request arrives as it was sent, and an answer as it was given, whatever is in them.

`--hypothesis-profile thorough` runs eight times as many cases.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode

import pytest
from conftest import BASE, Process, answering, request, web_action
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.stacks(1)  # what this asks for has nothing to do with the others
TOKEN = "!#$%&'*+-.^`|~" + "0123456789" + "abcdefghijklmnopqrstuvwxyz"
BINARY = ["application/json", "image/png", "multipart/form-data", "a/b; c=d", "a/b+json"]
TEXT = ["text/plain", "text/html; charset=utf-8", "application/xml", "a/b; charset=utf-8"]

segments = st.text(st.sampled_from("abc é大😀%/+;=&?#~'\"<>\\\t"), min_size=1, max_size=8)
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20).map(str.strip)
sent_names = st.text(TOKEN, min_size=1, max_size=12).map(lambda name: "x-" + name)
# As wsgiref.validate, which is around the app, wants them.
answered_names = st.from_regex("x(-[a-z0-9]{1,6}){1,3}", fullmatch=True)
data = st.tuples(st.sampled_from(BINARY), st.binary(min_size=1, max_size=60))
texts = st.tuples(st.sampled_from(TEXT), st.text(min_size=1, max_size=60).map(str.encode))


@pytest.fixture(scope="module")
def action(recorder: Process) -> Iterator[int]:
    with web_action(recorder.port) as port:
        yield port


@given(
    method=st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE"]),
    path=st.lists(segments, min_size=1, max_size=4),
    query=st.lists(st.tuples(segments, segments), max_size=4),
    headers=st.dictionaries(sent_names, values, max_size=4),
    content=data | texts,
    padding=st.sampled_from([0, 0, 70_000]),  # long bodies are read in another way
)
def test_the_app_sees_the_request_that_was_sent(
    method: str, path: Any, query: Any, headers: Any, content: Any, padding: int, action: int
) -> None:
    kind, body = content[0], b"x" * padding + content[1]
    target = "".join("/" + quote(segment, safe="") for segment in path)
    sent = {"Host": "model.example.com", **headers}
    url = f"{BASE}{target}?{urlencode(query)}"
    seen = request(action, method, url, body, {"Content-Type": kind, **sent}).json
    assert base64.b64decode(seen["body"]) == body
    assert parse_qsl(seen["QUERY_STRING"], keep_blank_values=True) == query
    expected = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": BASE,
        "PATH_INFO": unquote_to_bytes(target).decode("latin-1"),
        "CONTENT_LENGTH": str(len(body)),
        **{"HTTP_" + name.upper().replace("-", "_"): text for name, text in sent.items()},
    }
    names = [name for name in seen if name in expected or name.startswith("HTTP_")]
    assert {name: seen[name] for name in names} == expected


@given(
    status=st.integers(200, 599).filter(lambda status: status not in (204, 205, 304)),
    headers=st.dictionaries(answered_names, values, max_size=4),
    content=data | texts,
)
def test_the_caller_sees_the_answer_that_was_given(
    status: int, headers: dict[str, str], content: Any, action: int
) -> None:
    kind, body = content
    listed = [["Content-Type", kind], *map(list, headers.items())]
    answer = request(action, "GET", BASE + "/x?" + answering(status, listed, body))
    got = {name: answer.header(name) for name in headers}
    assert (answer.status, got, answer.body) == (status, headers, body)
    assert without_utf_8(str(answer.header("content-type"))) == without_utf_8(kind)


def without_utf_8(kind: str) -> str:
    return kind.lower().replace("; charset=utf-8", "")


def test_no_thread_and_no_file_is_left_of_them(recorder: Process) -> None:
    """Runs last: the process is as small as an idle one."""
    folder = f"/proc/{recorder.popen.pid}"
    assert len(os.listdir(f"{folder}/fd")) < 20
    assert len(os.listdir(f"{folder}/task")) < 10
