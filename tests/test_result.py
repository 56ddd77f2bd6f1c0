"""The caller gets the answer that the app has given: its status, headers and body."""

from __future__ import annotations

import base64
import gzip
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any
from wsgiref.validate import validator

import pytest
from conftest import ROOT, SENTINEL, Process, answering, web
from werkzeug.datastructures import Headers
from werkzeug.wsgi import ClosingIterator

import openwhisk

JSON, SVG, TEXT = "application/json", "image/svg+xml", "text/plain"
OCTETS, KIND, LIMIT = "application/octet-stream", {"Content-Type": JSON}, 1000
ENVIRON = openwhisk.environ_of(web("/x"), dict.fromkeys(openwhisk.BOUND, "/"))
ERROR, TYPED = (ValueError, ValueError("late"), None), [("Content-Type", TEXT)]


def call(app: Any) -> tuple[int, bytes]:
    response = openwhisk.call(validator(app), ENVIRON, LIMIT)
    return response.status, response.body


APPS = {
    "list": lambda _, start: start("200 OK", TYPED) and [b"a", b"b"],
    "generator": lambda _, start: (start("200 OK", TYPED) and chunk for chunk in [b"ab"]),
    "write": lambda _, start: start("200 OK", TYPED)(b"a") or [b"b"],
    "error": lambda _, start: start("404 No", TYPED) and start("200 OK", TYPED, ERROR) and [b"ab"],
}


@pytest.mark.parametrize("app", APPS.values(), ids=APPS)
def test_an_app_may_answer_in_every_way_of_wsgi(app: Any) -> None:
    assert call(app) == (200, b"ab")


def test_an_error_after_the_first_byte_is_not_hidden() -> None:
    with pytest.raises(ValueError, match="late"):
        call(lambda _, start: start("200 OK", TYPED)(b"a") or start("500 Error", TYPED, ERROR))


def closing(chunks: Iterator[bytes], closed: list[bool]) -> Any:
    """An app whose body adds to the list when it is closed."""
    body = ClosingIterator(chunks, lambda: closed.append(True))
    return lambda _, start: start("200 OK", TYPED) and body


def test_the_body_is_closed_after_an_error() -> None:
    closed: list[bool] = []
    with pytest.raises(ZeroDivisionError):
        call(closing((b"x" * (1 // number) for number in (1, 0)), closed))
    assert closed == [True]


def test_an_endless_body_is_stopped_and_closed() -> None:
    closed: list[bool] = []
    chunks = iter([b"x" * 100] * 50)
    call(closing(chunks, closed))
    assert (len(list(chunks)), closed) == (39, [True])


FAULTS = {"NaN": {"nan": 1}, **{path: web(path) for path in ("/raise", "/raise-late", "/exit")}}


@pytest.mark.parametrize("value", FAULTS.values(), ids=FAULTS)
def test_an_exception_is_a_sentence_and_the_log_says_why(flask_app: Process, value: Any) -> None:
    assert flask_app.run(value) == openwhisk.failure(500, "The request failed; the log says why.")
    assert "Traceback" in flask_app.until(SENTINEL, flask_app.err)


def result_of(status: int, headers: list[tuple[str, str]]) -> dict[str, Any]:
    """Without the validator, which refuses what HTTP forbids."""
    response = openwhisk.call(lambda _, start: start(str(status), headers) and [b"a"], ENVIRON)
    return openwhisk.result_of(response)


@pytest.mark.parametrize("status", [200, 302, 499, 500, 503])
def test_a_status_from_500_on_is_a_failed_activation(status: int) -> None:
    """And a body without a type is base64."""
    result = {"statusCode": status, "headers": {"Content-Type": OCTETS}, "body": "YQ=="}
    assert result_of(status, []) == ({"error": result} if status >= 500 else result)


HEADERS = {
    "repeated": ([("X-A", "1"), ("X-A", "2"), ("X-B", "3")], {"X-A": ["1", "2"], "X-B": "3"}),
    "the controller's": ([("Date", "x"), ("server", "x")], {}),
    "the connection's": ([("Connection", "x"), ("Transfer-Encoding", "x")], {}),
    "length and origin": ([("Content-Length", "1"), ("Access-Control-Allow-Origin", "*")], {}),
    "no token": ([("", "a"), ("X A", "a"), ("X:Y", "a"), ("Ü", "a"), ("X\n", "a")], {}),
    "line ends and NUL": ([("A", "a\r\nB: b"), ("A", "a\n"), ("A", "a\r"), ("A", "a\0")], {}),
    "odd, but allowed": ([("!#$%&'*+.^_`|~", "\té\x7f:")], {"!#$%&'*+.^_`|~": "\té\x7f:"}),
}


@pytest.mark.parametrize(("sent", "carried"), HEADERS.values(), ids=HEADERS)
def test_headers_are_the_apps_but_for_those_that_http_forbids(
    sent: list[tuple[str, str]], carried: dict[str, Any]
) -> None:
    assert result_of(200, [*KIND.items(), *sent])["headers"] == {**KIND, **carried}


TYPES = {  # Content-Type and body of the app; Content-Type and body of the result
    "text": ("text/html; charset=utf-8", "é".encode(), "text/html; charset=utf-8", "é"),
    "capitals": ("TEXT/HTML; Charset=UTF-8", b"a", "text/html; charset=UTF-8", "a"),
    "text in latin-1": ("a/b; charset=latin1", b"\xe9", "a/b; charset=latin1", "é"),
    "no text": (TEXT, b"\xff", OCTETS, b"\xff"),
    "no charset": (TEXT + "; charset=nonsense", b"a", OCTETS, b"a"),
    "binary": ("image/png; a=b", b"\x89", "image/png; a=b", b"\x89"),
    "binary with a charset": (SVG + "; charset=utf-8", b"<svg/>", SVG, b"<svg/>"),
    "malformed": ("garbage", b"a", OCTETS, b"a"),
    "JSON": (JSON, ' {"a": "é"}'.encode(), JSON, ' {"a": "é"}'),
    "JSON like base64": (JSON, b"1234", JSON, b"1234"),
    "JSON like base64 in UTF-16": (JSON + "; charset=utf-16-le", b"1\0", JSON, b"1"),
    "JSON with a parameter": (JSON + "; a=b", b"1234", JSON + "; a=b", "1234"),
    "JSON that is none": (JSON, b"\xff", JSON, b"\xff"),
    "JSON of another name": ("application/ld+json", b"{}", "application/ld+json", b"{}"),
}


@pytest.mark.parametrize(("sent", "body", "kind", "carried"), TYPES.values(), ids=TYPES)
def test_the_body_is_text_or_base64_as_the_controller_expects(
    recorder: Process, sent: str, body: bytes, kind: str, carried: str | bytes
) -> None:
    result = recorder.run(web(query=answering(200, [["Content-Type", sent]], body)))
    text = base64.b64encode(carried).decode() if isinstance(carried, bytes) else carried
    assert result == {"statusCode": 200, "headers": {"Content-Type": kind}, "body": text}


def test_text_is_what_the_controller_was_recorded_to_take_for_it() -> None:
    recorded = json.loads((ROOT / "tests/recordings/text_media_types.json").read_text())
    assert set(recorded["text"]) == openwhisk.TEXT


PACKABLE = {  # Content-Type of the app, and of the result
    "JSON with a charset": (JSON + "; charset=utf-8", JSON),
    "JavaScript": ("application/javascript; charset=utf-8", "text/javascript"),
    "binary": (SVG, SVG),
}


@pytest.mark.parametrize(("sent", "kind"), PACKABLE.values(), ids=PACKABLE)
def test_what_the_app_packed_is_carried(sent: str, kind: str) -> None:
    headers = {"Content-Type": kind, "Content-Encoding": "br"}
    result = {"statusCode": 200, "headers": headers, "body": "YQ=="}
    assert result_of(200, [("Content-Type", sent), ("Content-Encoding", "br")]) == result


def test_text_that_the_app_packed_is_a_sentence() -> None:
    result = result_of(200, [("Content-Type", "text/html"), ("Content-Encoding", "br")])
    assert result == openwhisk.failure(500, "OpenWhisk carries no text in the Content-Encoding br.")


PLAIN = {
    "object": (200, JSON, b'{"a": "\\ud800"}', {"a": "\ud800"}),
    "failure": (400, JSON, b'{"message": "bad"}', {"error": {"message": "bad"}}),
    "failure of text": (500, TEXT, b"bad\xff", {"error": "bad\ufffd"}),
    "list": (200, JSON, b"[1]", {"statusCode": 200, "headers": KIND, "body": "[1]"}),
}


@pytest.mark.parametrize(("status", "kind", "body", "expected"), PLAIN.values(), ids=PLAIN)
def test_a_plain_invocation_gets_the_object(
    status: int, kind: str, body: bytes, expected: dict[str, Any]
) -> None:
    response = openwhisk.Response(status, Headers([("Content-Type", kind)]), body)
    assert json.loads(openwhisk.dump(openwhisk.plain_result(response)).decode()) == expected


@pytest.mark.parametrize(("sent", "kind"), PACKABLE.values(), ids=PACKABLE)
def test_what_is_over_the_limit_is_packed(recorder: Process, sent: str, kind: str) -> None:
    query = answering(200, [["Content-Type", sent], ["Vary", "Cookie"]], b"[" * LIMIT)
    value = web(query=query, accept_encoding="br, gzip;q=0.5")
    result = recorder.run({**value, "OPENWHISK_RESULT_LIMIT": str(LIMIT)})
    packed = {"Content-Encoding": "gzip", "Vary": ["Cookie", "Accept-Encoding"]}
    assert result["headers"] == {"Content-Type": kind, **packed}
    assert gzip.decompress(base64.b64decode(result["body"])) == b"[" * LIMIT


TOO_LARGE = {  # headers and size of the answer, Accept-Encoding
    "text": ({"Content-Type": "text/html"}, LIMIT, "gzip"),
    "packed": ({**KIND, "Content-Encoding": "br"}, LIMIT, "gzip"),
    "part": ({**KIND, "Content-Range": "bytes 0-999/4000"}, LIMIT, "gzip"),
    "gzip refused": (KIND, LIMIT, "gzip;q=0, br"),
    "accepted after much": (KIND, LIMIT, " " * 500_000 + "gzip"),
    "over 32 times the limit": (KIND, 33 * LIMIT, "gzip"),
}


@pytest.mark.parametrize(("headers", "size", "accept"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_can_not_be_packed_is_too_large(
    recorder: Process, headers: dict[str, str], size: int, accept: str
) -> None:
    query = answering(200, list(map(list, headers.items())), b"[" * size)
    value = {**web(query=query, accept_encoding=accept), "OPENWHISK_RESULT_LIMIT": LIMIT}
    assert recorder.run(value) == openwhisk.failure(500, openwhisk.TOO_LARGE % (size, LIMIT))


FITS = {
    "small": ("[" * 500, LIMIT),
    "as UTF-8": ("[" + "é" * 400, LIMIT),
    "no limit": ("[" * 70_000, 0),
}


@pytest.mark.parametrize(("body", "limit"), FITS.values(), ids=FITS)
def test_what_fits_is_not_packed(recorder: Process, body: str, limit: int) -> None:
    query = answering(200, [["Content-Type", JSON]], body.encode())
    value = {**web(query=query, accept_encoding="gzip"), "OPENWHISK_RESULT_LIMIT": limit}
    assert recorder.run(value) == {"statusCode": 200, "headers": KIND, "body": body}


@pytest.mark.parametrize("kind", [JSON, TEXT])
def test_a_large_answer_takes_little_memory(kind: str) -> None:
    """Less than 16 times the limit: decoded it takes 124 MiB."""
    body = "😀".encode() + b"x" * (31 << 20)
    response = openwhisk.Response(200, Headers([("Content-Type", kind)]), body)
    tracemalloc.start()
    openwhisk.fit(response, "gzip", 1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20
