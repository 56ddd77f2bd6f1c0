"""The app sees the request that the caller has sent, whichever message OpenWhisk makes of it."""

from __future__ import annotations

import base64
import json
from typing import Any
from wsgiref.validate import check_environ  # type: ignore[attr-defined]

import pytest
from conftest import BASE, Process, answering, web

import openwhisk

DEFAULTS = {name: default for name, (default, *_) in openwhisk.SETTINGS.items()}
FAILED = openwhisk.failure(500, "The request failed; the log says why.")
JSON, FORM = "application/json", "application/x-www-form-urlencoded"
LONG = openwhisk.LONG // 4 * 3  # bytes, whose base64 is long


@pytest.fixture(autouse=True)
def action(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("__OW_ACTION_NAME", "/guest/rec")


def environ_of(value: dict[str, Any], **settings: str) -> dict[str, Any]:
    """The environ, with the bytes of the body."""
    environ = openwhisk.environ_of(value, {**DEFAULTS, **settings})
    check_environ(environ)
    return {**environ, "wsgi.input": environ["wsgi.input"].read()}


def web_true(method: str = "get", kind: str = "", **parameters: Any) -> dict[str, Any]:
    """The value of a web action's POST /run, --web true."""
    headers = {"content-type": kind} if kind else {}
    return {"__ow_method": method, "__ow_path": "/x", "__ow_headers": headers, **parameters}


def as_sent(value: dict[str, Any]) -> bytes:
    """The message as the invoker writes it: without spaces, and in UTF-8."""
    message = {"action_name": "/guest/rec", "value": value}
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()


def seen(recorder: Process, value: dict[str, Any]) -> dict[str, Any]:
    """The environ that a live app is given, with the bytes of the body."""
    result = recorder.post("/run", as_sent(value)).json
    environ = json.loads(result["body"]) if "statusCode" in result else result
    return {**environ, "wsgi.input": base64.b64decode(environ["body"])}


def test_the_environ_is_the_whole_request() -> None:
    names = {"x-name": "é", "x_name": "another", "x-forwarded-for": "1.2.3.4, 5.6.7.8"}
    kinds = {"content-type": "image/png", "accept": "*/*", "accept-encoding": "gzip"}
    value = web("/a%2Fb//%C3%A9%FF%25", "post", "iVBORw==", "a=1&b=%26")
    value = {**value, "__ow_headers": {"host": "h:3233", **names, **kinds}, "__ow_user": "me"}
    environ = environ_of(value)
    assert {name: environ[name] for name in environ if name[:5] != "wsgi."} == {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": BASE,
        "PATH_INFO": "/a/b//\xc3\xa9\xff%",
        "QUERY_STRING": "a=1&b=%26",
        "REQUEST_URI": BASE + "/a%2Fb//%C3%A9%FF%25?a=1&b=%26",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "h",
        "SERVER_PORT": "3233",
        "REMOTE_ADDR": "5.6.7.8",
        "REMOTE_USER": "me",
        "CONTENT_TYPE": "image/png",
        "CONTENT_LENGTH": "4",
        "HTTP_ACCEPT": "*/*",
        "HTTP_HOST": "h:3233",
        "HTTP_X_NAME": "\xc3\xa9",
        "HTTP_X_FORWARDED_FOR": "1.2.3.4, 5.6.7.8",
    }


BASES = {
    "without a package": ("/guest/ocr", "", "/api/v1/web/guest/default/ocr"),
    "in a package": ("/guest/models/ocr", "", "/api/v1/web/guest/models/ocr"),
    "of a namespace with a space": ("/a b@c/ocr", "", "/api/v1/web/a b@c/default/ocr"),
    "setting": ("/guest/ocr", "/models/ocr/", "/models/ocr"),
}


@pytest.mark.parametrize(("name", "setting", "base"), BASES.values(), ids=BASES)
def test_the_base_path_is_where_the_caller_sees_the_model(
    monkeypatch: pytest.MonkeyPatch, name: str, setting: str, base: str
) -> None:
    monkeypatch.setenv("__OW_ACTION_NAME", name)
    environ = environ_of(web("/x"), OPENWHISK_BASE_PATH=setting)
    uri = base.replace(" ", "%20") + "/x"
    assert (environ["SCRIPT_NAME"], environ["REQUEST_URI"]) == (base, uri)


ADDRESSES = {  # Host, X-Forwarded-Proto, X-Forwarded-Host
    "host": ("h", "", "", ("http", "h", "h", "80")),
    "host and port": ("[::1]:81", "", "", ("http", "[::1]:81", "[::1]", "81")),
    "proxy": ("h", "HTTPS", "f:8443", ("https", "f:8443", "f", "8443")),
    "two proxies": ("h", "https , http", "f , g", ("https", "f", "f", "443")),
    "nothing": ("", "", "", ("http", "localhost", "localhost", "80")),
}


@pytest.mark.parametrize(("host", "proto", "proxy", "expected"), ADDRESSES.values(), ids=ADDRESSES)
def test_the_address_is_the_callers(host: str, proto: str, proxy: str, expected: Any) -> None:
    environ = environ_of(web(host=host, x_forwarded_proto=proto, x_forwarded_host=proxy))
    names = ("wsgi.url_scheme", "HTTP_HOST", "SERVER_NAME", "SERVER_PORT")
    assert tuple(environ[name] for name in names) == expected


LENGTHS = {"get": None, "post": "0", "put": "0", "patch": "0"}


@pytest.mark.parametrize("method", LENGTHS)
def test_a_length_is_told_of_what_usually_has_a_body(method: str) -> None:
    assert environ_of(web("/x", method)).get("CONTENT_LENGTH") == LENGTHS[method]


BASE64_TYPES = [JSON, JSON + "; charset=utf-8", "a/b+json", "text/x-acme", "image/png; charset=x"]
TEXT_TYPES = [JSON + "; a=b", "application/problem+json", "a/b; charset=utf-8", "text/plain"]


@pytest.mark.parametrize("kind", BASE64_TYPES + TEXT_TYPES)
def test_a_body_of_web_raw_is_text_or_base64_by_its_type(kind: str) -> None:
    sent = "eyJhIjogMX0=" if kind in BASE64_TYPES else '{"a": 1}'
    assert environ_of(web("/x", "post", sent, content_type=kind))["wsgi.input"] == b'{"a": 1}'


WEB_TRUE = {
    "query": (web_true(a="é", b="&"), "a=%C3%A9&b=%26", b""),
    "HEAD": (web_true("head", JSON, a="1"), "a=1", b""),
    "form": (web_true("post", FORM, a="é", b=""), "", b"a=%C3%A9&b="),
    "JSON": (web_true("put", JSON, a=[1]), "", b'{"a": [1]}'),
    "JSON of another name": (web_true("post", "a/b+json", a=None), "", b'{"a": null}'),
    "JSON that is no object": (web_true("post", JSON, a="1", __ow_body=[1]), "a=1", b"[1]"),
    "text": (web_true("post", "text/plain", __ow_body="é"), "", b"\xc3\xa9"),
    "image": (web_true("post", "image/png", __ow_body="iQ=="), "", b"\x89"),
    "user and setting": (web_true(__ow_user="me", OPENWHISK_BASE_PATH="//evil"), "", b""),
}


@pytest.mark.parametrize(("value", "query", "body"), WEB_TRUE.values(), ids=WEB_TRUE)
def test_web_true_is_made_a_request_again(value: dict[str, Any], query: str, body: bytes) -> None:
    environ = environ_of(value)
    assert (environ["QUERY_STRING"], environ["wsgi.input"]) == (query, body)


@pytest.mark.parametrize("text", ["é", "\\", '"', "\n"], ids=ascii)
def test_a_long_text_arrives(recorder: Process, text: str) -> None:
    value = web("/x", "post", text * 70_000, content_type="text/plain")
    assert seen(recorder, value)["wsgi.input"] == text.encode() * 70_000


NESTED, SHORT = {"deep": {"__ow_body": "x" * 70_000}}, web("/x", "post", "bWluZQ==")
NOT_BODIES = [{**NESTED, **SHORT}, {**SHORT, **NESTED}, web_true("post", JSON, **NESTED), NESTED]


@pytest.mark.parametrize("value", NOT_BODIES, ids=["raw, before", "raw, after", "true", "plain"])
def test_a_callers_own_ow_body_is_not_taken_for_the_body(value: dict[str, Any]) -> None:
    assert openwhisk.parse(as_sent(value))["value"] == value


@pytest.mark.parametrize("openssl", [openwhisk.EVP_DecodeBlock, None], ids=["OpenSSL", "Python"])
@pytest.mark.parametrize("size", [0, 1, 2, 3, *range(LONG - 3, LONG + 4)])
def test_base64_of_any_length_is_decoded(
    monkeypatch: pytest.MonkeyPatch, size: int, openssl: Any
) -> None:
    monkeypatch.setattr(openwhisk, "EVP_DecodeBlock", openssl)
    data = b"=\xff\0" * (size // 3) + b"\xff" * (size % 3)
    assert openwhisk.decode_base64(base64.b64encode(data)) == data


@pytest.mark.parametrize("body", ["abc", "!" * 70_000], ids=["short", "long"])
def test_a_body_that_is_no_base64_is_answered_with_a_sentence(recorder: Process, body: str) -> None:
    value = web("/x", "post", body, content_type="image/png")
    assert recorder.post("/run", as_sent(value)).json == FAILED


BOUND = {"OPENWHISK_PREDICT_PATH": "/analyze", "OPENWHISK_BASE_PATH": "/b"}
BINDINGS = {
    "raw": ({**web(query="a=1"), **BOUND}, ("/b", "/analyze", "a=1", b"")),
    "trigger": ({**web("/x"), "n": 1}, (BASE, "/x", "", b"")),
    "plain": ({"n": 1, **BOUND}, ("/b", "/analyze", "", b'{"n": 1}')),
    "not true": ({**web_true(a="1"), **BOUND}, (BASE, "/x", "a=1", b"")),
    "empty": ({**web(), **dict.fromkeys(BOUND, "")}, (BASE, "/model/predict", "", b"")),
}


@pytest.mark.parametrize(("value", "expected"), BINDINGS.values(), ids=BINDINGS)
def test_bound_settings_are_read_where_no_parameter_is_a_callers(
    recorder: Process, value: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    environ = seen(recorder, value)
    names = ("SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "wsgi.input")
    assert tuple(environ[name] for name in names) == expected


def test_the_log_says_what_a_bound_setting_must_be_like(recorder: Process) -> None:
    assert recorder.run({**web(), "OPENWHISK_RESULT_LIMIT": -1}) == FAILED
    recorder.until("OPENWHISK_RESULT_LIMIT must be like 1048576, not '-1'.", recorder.err)


HTML, ANY = {"accept": "text/html,*/*"}, {"accept": "*/*"}
VISITS = {  # what is asked, status and type of the answer, whether it is a redirect instead
    "no GET": (web(**HTML), 405, JSON, True),
    "HEAD": (web(method="head", **HTML), 404, "text/html", True),
    "page": (web(**HTML), 200, "text/html; charset=utf-8", True),
    "JSON": (web(**HTML), 200, JSON, False),
    "failure": (web(**HTML), 400, "text/html", False),
    "curl": (web(**ANY), 405, JSON, False),
    "POST": (web(method="post", **HTML), 405, JSON, False),
    "path": (web("/model/predict", **HTML), 405, JSON, False),
}


@pytest.mark.parametrize(("value", "status", "kind", "moved"), VISITS.values(), ids=VISITS)
def test_a_browser_at_the_bare_url_is_sent_to_the_ui(
    recorder: Process, value: dict[str, Any], status: int, kind: str, moved: bool
) -> None:
    query = "a=%20&" + answering(status, [["Content-Type", kind]])
    result = recorder.run({**value, "__ow_query": query})
    got = result["statusCode"], result["headers"].get("Location")
    assert got == ((302, BASE + "/?" + query) if moved else (status, None))


def test_a_browser_at_the_root_of_a_host_gets_the_ui(recorder: Process) -> None:
    query = answering(404, [["Content-Type", JSON]]).replace("answer", "predicted")
    value = {**web(query=query, **HTML), "OPENWHISK_BASE_PATH": "/"}
    assert seen(recorder, value)["REQUEST_URI"] == "/?" + query
