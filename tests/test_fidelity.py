"""The caller can't tell the web action from the model's own server: the same request to both, for
every API shape."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from conftest import (
    BASE,
    Answer,
    OpenWhisk,
    WebAction,
    model_container,
    request,
    web_action,
)
from werkzeug.test import EnvironBuilder

pytestmark = pytest.mark.openwhisk

# What a hop on the way sets by itself, on either side.
HOPS = {
    "connection",
    "content-length",
    "date",
    "server",
    "transfer-encoding",
    "x-openwhisk-activation-id",
    "x-request-id",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


Case = tuple[str, dict[str, Any]]  # path, and what else is asked


def sent(body: bytes, kind: str, method: str = "POST", **headers: str) -> dict[str, Any]:
    headers = {name.replace("_", "-"): text for name, text in headers.items()}
    return {"method": method, "body": body, "headers": {"Content-Type": kind, **headers}}


def multipart(
    filename: str = "a.png", kind: str = "image/png", data: bytes = PNG, **fields: str
) -> dict[str, Any]:
    form = {**fields, "image": (io.BytesIO(data), filename, kind)}
    environ = EnvironBuilder(method="POST", data=form).get_environ()
    return sent(environ["wsgi.input"].read(), environ["CONTENT_TYPE"])


def json_body(value: Any) -> dict[str, Any]:
    return sent(json.dumps(value).encode(), "application/json")


def form(body: str) -> dict[str, Any]:
    return sent(body.encode(), "application/x-www-form-urlencoded")


CASES: dict[str, Case] = {
    "image": ("/model/predict", multipart()),
    "image and query at the bare URL": ("?threshold=0.25&filter=a,b", multipart()),
    "image and number in the form": ("/model/predict", multipart(threshold="0.5")),
    "image, file name in UTF-8": ("/model/predict", multipart(filename="é大.png")),
    "image without a type": ("/model/predict", multipart(kind="application/octet-stream")),
    "image missing": ("/model/predict", {"method": "POST"}),
    "image of 700 kB": ("/model/predict", multipart(data=bytes(range(256)) * 2800)),
    "get of a POST path": ("/model/predict", {}),
    "metadata": ("/model/metadata", {}),
    "metadata of X-Fields": ("/model/metadata", {"headers": {"X-Fields": "name"}}),
    "image to image": ("/model/image", multipart()),
    "sound of a choice": ("/model/sound?model=lo-fi", {}),
    "query of UTF-8": (
        "/model/words?first_word=%E5%A4%A7%E4%BE%A0&second_word=%E5%A4%A7+%E8%99%BE&theta=2",
        {"method": "POST"},
    ),
    "form": ("/model/words", form("first_word=%E5%A4%A7&theta=3")),
    "JSON": ("/model/text", json_body({"text": ["i love this", "été"]})),
    "JSON that breaks the schema": ("/model/text", json_body({"text": "no list"})),
    "JSON of 350 kB to and fro": ("/model/text", json_body({"text": ["x" * 350_000]})),
    "JSON in JSON": ("/model/nested", json_body({"paragraphs": [{"context": "été"}]})),
    "JSON list for an object": ("/model/nested", json_body([1])),
    **{
        f"error of a resource: {how}": (f"/model/error?how={how}", {"method": "POST"})
        for how in ("data", "keywords", "inference", "raise")
    },
    "file and choice": ("/model/choice?model=udnie", multipart("a b.csv", "text/csv", b"1\n2\n")),
    "numbers": ("/model/measures", {}),
    "trailing slash missing": ("/app", {}),
    "Swagger UI": ("/", {"headers": {"Accept": "text/html"}}),
    "swagger.json": ("/swagger.json", {}),
    "a style sheet of Swagger UI": ("/swaggerui/droid-sans.css", {}),
    "web app": ("/app/", {}),
    "script of the web app": ("/js/app.js", {}),
    "svg of the web app": ("/picture.svg", {}),
    "not found": ("/nowhere", {}),
    "escaped path": ("/seen/a%20b/%C3%A9/c%2Fd/%25", {}),
    "cookies": ("/cookies", {"headers": {"Cookie": "x=1; y=2"}}),
    "redirect": ("/redirect", {}),
    "redirect to another host": ("/redirect?to=https://example.com/range", {}),
    "id of its own": ("/seen/x", {"headers": {"X-Request-ID": "x" * 2000}}),
    "range": ("/range", {"headers": {"Range": "bytes=4-99"}}),
    "range not satisfiable": ("/range", {"headers": {"Range": "bytes=99999-"}}),
    "not modified": ("/etag", {"headers": {"If-None-Match": '"abc"'}}),
    "head": ("/model/metadata", {"method": "HEAD"}),
    "stream": ("/stream", {}),
    "error in the app": ("/raise", {}),
    "headers": (
        "/seen/x",
        {"headers": {"User-Agent": "curl/8.0", "X-One": "é".encode().decode("latin-1")}},
    ),
    "PNG body": ("/seen/x", sent(PNG, "image/png", "PUT")),
    "text body": ("/seen/x", sent("wörld\r\n".encode(), "text/plain", "PATCH")),
    "DELETE": ("/seen/x", {"method": "DELETE"}),
    "gzip of JSON": ("/encoded?type=application%2Fjson", {}),
    "gzip of JavaScript": ("/encoded?type=text%2Fjavascript", {}),
    "gzip of PNG": ("/encoded?type=image%2Fpng", {}),
    **{
        f"body of {kind}": ("/seen/x", sent(b'{"a": 1}', kind))
        for kind in (
            "application/json; a=b",
            "application/problem+json; a=b",
            "application/ld+json; profile=x",
            "chemical/x-pdb; charset=UTF-8",
            "application/x-foo; charset=UTF-8",
        )
    },
    **{
        f"status {code}": (f"/status/{code}", {})
        for code in (201, 202, 204, 304, 401, 418, 429, 500, 503)
    },
    **{
        f"type {kind} {body!r}": (f"/type?{urlencode({'type': kind, 'hex': body.hex()})}", {})
        for kind, body in (
            ("application/json", b"1234"),
            ("application/json", b'"a"'),
            ("application/json", b"\xff\xfe"),
            ("application/json; a=b", b"1234"),
            ("application/ld+json; profile=x", b"1234"),
            ("application/problem+json", b"1234"),
            ("application/vnd.acme+json; charset=utf-8", b"1234"),
            ("text/html; charset=utf-8", "é".encode()),
            ("text/x-acme", b"a b"),
            ("text/x-acme; charset=utf-8", b"a b"),
            ("image/svg+xml; charset=utf-8", b"<svg/>"),
            ("text/javascript; charset=utf-8", b"1"),
            ("image/png; x=1", PNG),
        )
    },
}
# Where the model has the root of a host: also what an app answers that leaves out SCRIPT_NAME.
ROOT_CASES: dict[str, Case] = {
    **{
        name: CASES[name]
        for name in ("trailing slash missing", "Swagger UI", "swagger.json", "web app", "cookies")
    },
    "image at the bare URL": ("", multipart()),
    "redirect of its own making": ("/redirect?to=/range", {}),
    "redirect to its own address": ("/redirect?to=http://model.example.com/range", {}),
    "cookie for a folder": ("/cookies?path=/model", {}),
}
# --web true gives the app less than the client sent: the query beside JSON and repeated
# parameters are lost.
RAW_CASES: dict[str, Case] = {
    "JSON and query": ("/seen/x?c=3", json_body({"a": 1})),
    "JSON as it was written": ("/seen/x", sent(b'{"n": 1.50,  "z": 1}', "application/json")),
    "malformed JSON": ("/model/text", sent(b'{"text": [', "application/json")),
    "form with repetitions": ("/seen/x?a=1&a=2", form("b=1&b=2&c=%C3%A9")),
    "gzip body": ("/seen/x", sent(b"\x1f\x8b", "application/json", Content_Encoding="gzip")),
    "reserved names": ("/seen/x?__ow_body=x", {}),
    "flag and nothing": ("/seen/x?flag&empty=", {}),
}
EVERY_CASE = {**CASES, **RAW_CASES}
HOST = "model.example.com"
# What the app links to with url_for(), in its pages, redirects and cookies.
OWN_LINK = re.compile(
    rf"""((?:http://{HOST}|["'>]|Path=|^))(/(?:app/|model\b|range\?|seen/|swaggerui/|swagger.json))"""
)


@pytest.fixture(scope="session")
def web_actions(
    openwhisk: OpenWhisk | None, request: pytest.FixtureRequest, stack: str
) -> Iterator[Callable[..., WebAction]]:
    """Makes the model's web action, --web raw or true, with parameters bound to it."""
    with contextlib.ExitStack() as running:

        @functools.cache
        def make(web: str, **bound: str) -> WebAction:
            if openwhisk:
                return openwhisk.web_action("max_app", web=web, bound=bound)
            container = request.getfixturevalue("max_app")
            if bound:  # flask-restx keeps the base path of its first request
                container = running.enter_context(model_container(stack))
            port = running.enter_context(web_action(container.port, web, parameters=bound))
            return WebAction(f"http://127.0.0.1:{port}{BASE}")

        yield make


@pytest.fixture(params=["raw", "true"])
def action(request: pytest.FixtureRequest, web_actions: Callable[..., WebAction]) -> WebAction:
    return web_actions(request.param)


def as_seen(answer: Answer) -> dict[str, Any]:
    """What a caller sees."""
    headers = []
    for name, text in answer.headers:
        if name.lower() == "content-type":
            text = re.sub(r"; *charset=utf-8", "", text, flags=re.IGNORECASE)  # which text gets
        if name.lower() == "expires":
            text = "later"  # a second may pass between the two requests
        if name.lower() not in HOPS:
            headers.append((name.lower(), text))
    return {"status": answer.status, "headers": sorted(headers), "body": answer.body}


def below(base: str, seen: dict[str, Any]) -> dict[str, Any]:
    """What the model's own server would answer below the base path: it is in the links that the
    app makes with url_for(), and in the schema."""
    headers = [
        (name, OWN_LINK.sub(rf"\1{base}\2", text) if name in ("location", "set-cookie") else text)
        for name, text in seen["headers"]
    ]
    body = seen["body"]
    if b"<!doctype html" in body[:20].lower():
        body = OWN_LINK.sub(rf"\1{base}\2", body.decode()).encode()
    body = body.replace(b'"basePath": "/"', b'"basePath": "%s"' % (base.encode() or b"/"))
    return {**seen, "headers": headers, "body": body}


def compare(
    path: str,
    details: dict[str, Any],
    own: int,
    action: WebAction,
    base: str,
    predict: str = "/model/predict",
) -> None:
    """Nothing of the web action's answer is rewritten."""
    method, body = details.get("method", "GET"), details.get("body")
    headers = {"Host": HOST, **details.get("headers", {})}
    own_path = path if path.startswith("/") else predict + path
    expected = below(base, as_seen(request(own, method, own_path, body, headers)))
    got = as_seen(action.request(method, path, body, headers))
    if not expected["body"]:  # the controller takes the type from an empty response
        expected["headers"] = [
            pair
            for pair in expected["headers"]
            if pair[0] != "content-type" or pair in got["headers"]
        ]
    assert got == expected


@pytest.mark.parametrize("case", CASES)
def test_the_web_action_answers_as_the_models_own_server(
    case: str, own: int, action: WebAction
) -> None:
    compare(*CASES[case], own, action, action.base)


@pytest.mark.parametrize("action", ["raw"], indirect=True)
@pytest.mark.parametrize("case", RAW_CASES)
def test_web_raw_loses_nothing(case: str, own: int, action: WebAction) -> None:
    compare(*RAW_CASES[case], own, action, action.base)


@pytest.mark.parametrize("case", ROOT_CASES)
def test_the_root_of_a_host_is_the_models_own_address(
    case: str, own: int, web_actions: Callable[..., WebAction]
) -> None:
    compare(*ROOT_CASES[case], own, web_actions("raw", OPENWHISK_BASE_PATH="/"), "")


@pytest.mark.parametrize("path", ["/model/metadata", "/model/sound", "/app/"])
def test_head_tells_the_length_of_get(path: str, own: int, action: WebAction) -> None:
    expected = request(own, "HEAD", path)
    answer = action.request("HEAD", path)
    assert answer.header("content-length") == expected.header("content-length") != "0"
    assert answer.body == b""
