"""A web action's URL on this machine: stands in for OpenWhisk's controller and invoker.

Does to requests and results, in front of one container, what a real OpenWhisk was recorded to do
(tests/recordings), limits and error texts included. Knows nothing of openwhisk.py: an error that
both shared would show nowhere.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import http.client
import json
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Callable
from urllib.parse import quote, unquote

from werkzeug.serving import WSGIRequestHandler, make_server

import results

Headers = list[tuple[str, str]]
Reply = tuple[int, Headers, bytes]
Value = dict[str, Any]

LIMIT = 1_048_576  # bytes of a request's body, and of a result as JSON
BLOCKING_SECONDS = 60.0  # how long the controller keeps a client waiting
RETRY_SECONDS = 0.05  # how often the invoker knocks until the container listens
KEPT = 100  # results of the last activations
# Of the user guest on a standalone server, which everybody knows.
KEY = (
    "23bc46b1-71f6-4ed5-8c54-816aa4f8c502:"
    "123zO3xZCLrMN6v2BKK1dXYFpXlPkccOFqm12CdAsMgRU4VrNZ9lyGVCGuMDGIwP"
)
API = "/api/v1/namespaces/_/"
METHODS = ("GET", "DELETE", "POST", "PUT", "HEAD", "OPTIONS", "PATCH")
RESERVED = {"__ow_" + name for name in ("method", "headers", "path", "user", "query", "body")}
JSON_TYPE = ("Content-Type", "application/json")
CORS_HEADERS = "Authorization, Origin, X-Requested-With, Content-Type, Accept, User-Agent"
DROPPED = {"connection", "content-length", "content-type", "date", "server", "transfer-encoding"}
BODILESS = {*range(100, 200), 204, 205, 304}

NOT_FOUND = "The requested resource does not exist."
FAILED = "There was an error processing your request."
UNAUTHORIZED = "Authentication is possible but has failed or not yet been provided."
NOT_ALLOWED = "HTTP method not allowed, supported methods: " + ", ".join(METHODS)
NOT_HTTP = "Response is not valid 'message/http'."
EXITED = "The action did not produce a valid response and exited unexpectedly."


# ---- What the controller refuses ----


class RefusedError(Exception):
    """The controller answers by itself, with a JSON body that holds this sentence."""

    def __init__(
        self,
        status: int,
        sentence: str,
        headers: Iterable[tuple[str, str]] = (),
        indent: int | None = 2,
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers, self.indent = status, sentence, headers, indent

    def reply(self, transaction_id: str) -> Reply:
        error = {"code": transaction_id, "error": self.sentence}
        text = json.dumps(
            error,
            ensure_ascii=False,
            indent=self.indent,
            separators=(",", ":" if self.indent is None else ": "),
        )
        return self.status, [*self.headers, JSON_TYPE], text.encode()


class HttpError(Exception):
    """Pekko HTTP answers by itself, in plain text: 400 before the controller, 500 after it."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def plainly(status: int, sentence: str) -> RefusedError:
    """A refusal whose JSON is on one line."""
    return RefusedError(status, sentence, indent=None)


# ---- Media types, as Pekko HTTP understands them ----

TEXT = set(
    """
    application/atom+xml application/base64 application/javascript application/json
    application/json-patch+json application/merge-patch+json application/problem+json
    application/problem+xml application/rss+xml application/soap+xml application/vnd.api+json
    application/vnd.google-earth.kml+xml application/x-latex application/x-vrml
    application/x-www-form-urlencoded application/xhtml+xml application/xml application/xml-dtd
    text/asp text/cache-manifest text/calendar text/css text/csv text/event-stream text/html
    text/markdown text/mcf text/plain text/richtext text/tab-separated-values text/uri-list
    text/vnd.wap.wml text/vnd.wap.wmlscript text/x-asm text/x-c text/x-component text/x-h
    text/x-java-source text/x-pascal text/x-script text/x-scriptcsh text/x-scriptelisp
    text/x-scriptksh text/x-scriptlisp text/x-scriptperl text/x-scriptperl-module
    text/x-scriptphyton text/x-scriptrexx text/x-scriptscheme text/x-scriptsh text/x-scripttcl
    text/x-scripttcsh text/x-scriptzsh text/x-server-parsed-html text/x-setext text/x-sgml
    text/x-speech text/x-uuencode text/x-vcalendar text/x-vcard text/xml
    """.split()
)
# A charset makes other types text too, but none that begins like these: the controller has them
# registered as binary (MediaType.scala of Apache Pekko HTTP 1.1), or most of their kind.
BINARY = tuple(
    """
    application/cbor application/gnutar application/grpc application/java-archive application/lha
    application/lzx application/msword application/octet-stream application/pdf
    application/postscript application/vnd.google-earth.kmz application/vnd.ms-
    application/vnd.oasis.opendocument. application/vnd.openxmlformats- application/x-7z-compressed
    application/x-ace-compressed application/x-apple-diskimage application/x-arc-compressed
    application/x-bzip application/x-chrome-extension application/x-compress
    application/x-debian-package application/x-dvi application/x-font- application/x-gtar
    application/x-gzip application/x-rar-compressed application/x-redhat-package-manager
    application/x-shockwave-flash application/x-tar application/x-tex application/x-x509-ca-cert
    application/x-xpinstall application/zip audio/ font/ image/ message/ multipart/ video/
    """.split()
)
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
PARAMETER = rf'\s*;\s*({TOKEN})\s*=\s*({TOKEN}|"(?:[^"\\]|\\.)*")'
MEDIA_TYPE = re.compile(rf"\s*({TOKEN})/({TOKEN})((?:{PARAMETER})*)\s*\Z")
CHARSETS = {"utf8": "UTF-8", "latin1": "ISO-8859-1", "ascii": "US-ASCII"}


def parameters_of(text: str) -> dict[str, str]:
    return {name.lower(): value for name, value in re.findall(PARAMETER, text)}


class MediaType:
    """A Content-Type; raises ValueError where it is none."""

    def __init__(self, content_type: str) -> None:
        found = MEDIA_TYPE.match(content_type)
        if not found:
            raise ValueError(f"{content_type!r} is not a media type")
        self.kind = f"{found[1]}/{found[2]}".lower()
        self.parameters = parameters_of(found[3])
        charset = self.parameters.pop("charset", "").strip('"')
        is_json = self.kind == "application/json" or self.kind.endswith("+json")
        self.is_json = is_json and not self.parameters
        self.is_text = self.kind in TEXT or (charset != "" and not self.kind.startswith(BINARY))
        has_fixed = is_json or self.kind in (
            "application/x-www-form-urlencoded",
            "text/event-stream",
        )
        self.open_charset = self.is_text and not (has_fixed and self.kind in TEXT)
        charset = CHARSETS.get(charset.lower(), charset)
        if re.match("utf|iso|us-", charset, re.IGNORECASE):
            charset = charset.upper()
        self.charset = charset if self.open_charset else ""

    def __str__(self) -> str:
        shown = "".join(f"; {name}={text}" for name, text in sorted(self.parameters.items()))
        return self.kind + shown + (f"; charset={self.charset}" if self.charset else "")


RANGE = re.compile(rf"\s*(?:({TOKEN})/({TOKEN})|[*])((?:{PARAMETER})*)\s*\Z")


class Range:
    """One of an Accept or Accept-Charset; raises ValueError where it is none."""

    def __init__(self, text: str) -> None:
        found = RANGE.match(text)
        if not found:
            raise ValueError(f"{text!r} is not a media range")
        self.main, self.sub = (found[1] or "*").lower(), (found[2] or "*").lower()
        self.parameters = parameters_of(found[3])
        self.quality = float(self.parameters.pop("q", "1"))

    def __str__(self) -> str:
        shown = "".join(f"; {name}={text}" for name, text in self.parameters.items())
        quality = "" if self.quality == 1 else f";q={self.quality}"
        return f"{self.main}/{self.sub}{shown}{quality}"

    def matches(self, media: MediaType) -> bool:
        main, _, sub = media.kind.partition("/")
        others = {name: text for name, text in self.parameters.items() if name != "charset"}
        return (
            self.main in ("*", main)
            and self.sub in ("*", sub)
            and others.items() <= media.parameters.items()
        )


def ranges_of(header: str, prefix: str = "") -> list[Range]:
    """Empty where the header can't be understood."""
    try:
        return [Range(prefix + text.strip()) for text in header.split(",")]
    except ValueError:
        return []


def check_accepted(status: int, content_type: str, headers: dict[str, str]) -> None:
    """Raises RefusedError for a type that the caller does not accept (accept.json)."""
    media = MediaType(content_type)
    accepted = [(ranges_of(headers.get("accept", "")), media)]
    if media.is_text or media.is_json:
        charsets = ranges_of(headers.get("accept-charset", ""), "charset/")
        accepted.append((charsets, MediaType("charset/utf-8")))
    for ranges, found in accepted:
        qualities = [one.quality for one in ranges if one.matches(found)] or [0]
        if status < 400 and ranges and not all(qualities):
            words = "Resource representation is only available with these types:\n"
            raise plainly(406, words + media.kind)


# ---- The request becomes a value ----

SEGMENT_SAFE = "!$&'()*+,;=@:"  # what Pekko HTTP leaves as it is in a path's segment
QUERY_SAFE = "!$'()*,@:/?"  # and in a query's names and values


def body_of(environ: dict[str, Any]) -> bytes:
    """Raises HttpError and RefusedError."""
    headers = [(name.lower(), text.strip()) for name, text in environ["devserver.headers"]]
    for name in ("Content-Type", "Content-Length"):
        if len({text for known, text in headers if known == name.lower()}) > 1:
            raise HttpError(400, f"HTTP message must not contain more than one {name} header")
    length = dict(headers).get("content-length")
    try:
        if not environ.get("wsgi.input_terminated"):
            body: bytes = environ["wsgi.input"].read(int(length or 0))
        elif length:
            raise HttpError(400, "A chunked request must not contain a Content-Length header")
        else:
            body = environ["wsgi.input"].read()
    except ValueError:
        raise HttpError(400, "Illegal `Content-Length` header value") from None
    except OSError:
        raise HttpError(400, "Illegal character in chunk start") from None
    if len(body) > LIMIT:
        raise RefusedError(413, f"Request larger than allowed: {len(body)} > {LIMIT} bytes.")
    return body


def headers_of(environ: dict[str, Any]) -> dict[str, str]:
    """By their names in lower case, of each the last. Raises ConnectionResetError for one that is
    not UTF-8."""
    try:
        found = {
            name.lower(): text.strip().encode("latin-1").decode()
            for name, text in environ["devserver.headers"]
        }
    except UnicodeDecodeError:
        raise ConnectionResetError from None
    ranges = ranges_of(found.get("accept", ""))
    if ranges:
        found["accept"] = ", ".join(map(str, ranges))
    return found


def collapse_dots(path: str) -> str:
    """Without the segments . and .. (RFC 3986, 5.2.4), and only those."""
    kept: list[str] = []
    segments = path.split("/")
    for index, segment in enumerate(segments):
        plain = unquote(segment)
        if plain == "..":
            del kept[max(len(kept) - 1, 1) :]
        if plain not in (".", ".."):
            kept.append(segment)
        elif index == len(segments) - 1:
            kept.append("")
    return "/".join(kept)


def parse_query(query: str) -> list[tuple[str, str | None]]:
    """Names and values, None for a name without =. Raises RefusedError for a broken escape."""
    if re.search("%(?![0-9A-Fa-f]{2})", query):
        raise plainly(400, "Illegal query: Invalid input, expected HEXDIG")
    pairs = [part.replace("+", " ").partition("=") for part in query.split("&")] if query else []
    return [(unquote(name), unquote(text) if equals else None) for name, equals, text in pairs]


def render_query(pairs: list[tuple[str, str | None]]) -> str:
    quoted = [
        [quote(text, QUERY_SAFE + " ").replace(" ", "+") for text in pair if text is not None]
        for pair in pairs
    ]
    return "&".join("=".join(pair) for pair in quoted)


MALFORMED = "The request content was malformed:\n"


def number(text: str) -> float:
    """Of JSON. Raises RefusedError for a long one, as spray-json does."""
    if len(text) > 100:
        raise plainly(
            400,
            f"{MALFORMED}Number too long:The number starting with '{text[:20]}' had {len(text)} "
            "characters which is more than the allowed limit maxNumberCharacters = 100. If this is "
            "legit input consider increasing the limit.",
        )
    return int(text) if re.fullmatch("-?[0-9]+", text) else float(text)


def parse_json(data: bytes) -> Any:
    """Raises RefusedError with spray-json's words for what is malformed."""
    text = data.decode("latin-1")  # positions count bytes

    def refuse(name: str) -> None:
        raise json.JSONDecodeError("NaN is none", text, text.find(name))

    try:
        json.loads(text, parse_constant=refuse)
        content = data.decode(errors="replace")
        return json.loads(content, parse_int=number, parse_float=number)
    except RecursionError:  # pragma: no cover, where coverage loses sight
        raise plainly(400, MALFORMED + "JSON input nested too deeply") from None
    except json.JSONDecodeError as error:
        position, line = error.pos, error.lineno
    found = text[position : position + 1]
    shown = found if found.isprintable() else f"\\u{ord(found):04x}"
    unexpected = f"character '{shown}'" if found else "end-of-input"
    start = text.rfind("\n", 0, position) + 1
    rest = re.findall(
        b"[\xc0-\xdf].?|[\xe0-\xef].{0,2}|[\xf0-\xf7].{0,3}|.", data[start:].split(b"\n")[0]
    )
    column = position - start
    raise plainly(
        400,
        f"{MALFORMED}Unexpected {unexpected} at input index {position} (line {line}, "
        f"position {column + 1}), expected JSON Value:\n{''.join(map(printable, rest))}\n"
        f"{' ' * column}^\n",
    )


def printable(sequence: bytes) -> str:
    """One character of a line as spray-json shows it."""
    character = sequence.decode(errors="replace")[:1]
    return "?" if re.match(r"[\0-\x1f\x7f-\x9f]", character) else character


def carried(media: MediaType, body: bytes) -> str:
    """`__ow_body`: text decoded as UTF-8 whatever its charset, or base64."""
    if media.is_text and str(media) != "application/json":
        return body.decode(errors="replace")
    return base64.b64encode(body).decode()


def value_of(
    method: str,
    headers: dict[str, str],
    path: str,
    query: str,
    body: bytes,
    raw: bool,
    bound: Value,
) -> Value:
    """As in requests.json, with what is bound to the action. Raises RefusedError."""
    headers = {
        name: text
        for name, text in headers.items()
        if name not in ("content-length", "transfer-encoding")
    }
    media = None
    if body or "content-type" in headers:
        try:
            media = MediaType(headers.get("content-type", ""))
        except ValueError:
            media = MediaType("application/octet-stream")
        headers["content-type"] = str(media)
    value: Value = {"__ow_method": method.lower(), "__ow_headers": headers, "__ow_path": path}
    pairs = parse_query(query)
    if raw:
        content = carried(media, body) if media else ""
        return {**value, "__ow_query": render_query(pairs), "__ow_body": content, **bound}
    parameters: Value = {name: text or "" for name, text in pairs}
    if media and media.kind == "application/x-www-form-urlencoded":
        form = parse_query(body.decode(errors="replace"))
        parameters.update((name, text or "") for name, text in form)
    elif media and media.is_json:
        content = parse_json(body) if body else {}
        if isinstance(content, dict):
            parameters.update(content)
        else:
            value["__ow_body"] = content
    elif media:
        value["__ow_body"] = carried(media, body)
    if (RESERVED | set(bound)) & set(parameters):
        raise RefusedError(
            400, "Request defines parameters that are not allowed (e.g., reserved properties)."
        )
    return {**value, **parameters, **bound}


# ---- The result becomes a response ----

LOOKS_BASE64 = re.compile(
    r"[\0- ]*(?:[A-Za-z0-9+/]{4})*[A-Za-z0-9+/]{2}(?:[A-Za-z0-9+/]{2}|[A-Za-z0-9+/]=|==)[\0- ]*\Z"
)


def pretty(value: Any, indent: int = 0) -> str:
    """JSON as spray-json prints it: members on lines of their own, arrays on one."""
    if isinstance(value, list):
        return "[" + ", ".join(pretty(member, indent) for member in value) + "]"
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    space = " " * indent
    members = [
        f"{space}  {json.dumps(name)}: {pretty(value[name], indent + 2)}" for name in sorted(value)
    ]
    return "{\n" + ",\n".join(members) + f"\n{space}}}"


def texts_of(value: Any) -> list[str]:
    """Of a header, which may be a list. Raises RefusedError."""
    if isinstance(value, list):
        return [text for member in value for text in texts_of(member)]
    if value is None or isinstance(value, dict):
        raise RefusedError(400, NOT_HTTP)
    return [value if isinstance(value, str) else json.dumps(value)]


def bytes_of(body: Any, media: MediaType) -> bytes:
    """Raises RefusedError where the body is not as its type demands."""
    mismatch = RefusedError(400, "Response type in header did not match generated content type.")
    if not isinstance(body, str):
        if not media.is_json:
            raise mismatch
        return pretty(body).encode()
    if media.is_text and not (media.is_json and LOOKS_BASE64.match(body)):
        return body.encode("utf-8", "replace")
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise mismatch from None


def result_as_http(result: Any) -> Reply:
    """`{statusCode, headers, body}` as in responses.json. Raises RefusedError."""
    if not isinstance(result, dict) or not isinstance(result.get("headers", {}), dict):
        raise RefusedError(400, NOT_HTTP)
    body, fields = result.get("body"), result.get("headers", {})
    code = result.get("statusCode", 204 if body in (None, "") else 200)
    if isinstance(code, bool) or not re.match(r"[1-5][0-9]{2}(\.0)?$", str(code)):
        raise RefusedError(400, NOT_HTTP)
    status = int(float(code))
    headers = [(name, text) for name in sorted(fields) for text in texts_of(fields[name])]
    if not all(re.fullmatch(TOKEN, name) for name, _ in headers):
        raise ConnectionResetError
    types = [text for name, text in headers if name.lower() == "content-type"]
    kept = [
        (name, text)
        for name, text in headers
        if name.lower() not in DROPPED and not set("\r\n") & set(text)
    ]
    if body is None or body == "":
        return status, kept, b""
    default = "text/html" if isinstance(body, str) else "application/json"
    try:
        media = MediaType(types[0] if types else default)
    except ValueError:
        raise RefusedError(400, "Response did not specify a known content-type.") from None
    data = bytes_of(body, media)
    media.charset = "UTF-8" if media.open_charset else ""
    return status, [*kept, ("Content-Type", str(media))], data


EXTENSIONS = (".http", ".json", ".html", ".svg", ".text")  # the last four change only other results


# ---- The invoker ----


class Invoker:
    """Of one container, and what is kept of its activations."""

    def __init__(self, container: str, path: str, timeout: float, concurrency: int) -> None:
        """The path is the action's: guest/ocr. Raises ValueError for what is no container's URL."""
        address = re.fullmatch("http://([^/:@]+)(?::([0-9]{1,5}))?/?", container)
        if not address:
            raise ValueError(f"{container!r} is no container's URL, like http://127.0.0.1:8080.")
        self.container, self.address = container, (address[1], int(address[2] or 80))
        self.path, self.timeout = path, timeout
        self.records: dict[str, Value] = {}  # of the last activations, by their id
        self.free = threading.BoundedSemaphore(concurrency)  # a real one starts more containers

    def activation(self) -> dict[str, str]:
        """The fields of a message beside its value."""
        return {
            "action_name": "/" + self.path,
            "action_version": "0.0.1",
            "activation_id": uuid.uuid4().hex,
            "deadline": str(int((time.time() + self.timeout) * 1000)),
            "namespace": self.path.partition("/")[0],
            "transaction_id": uuid.uuid4().hex,
        }

    def init(self) -> None:
        """POST /init, again and again until the container listens. Raises ConnectionError with a
        sentence."""
        env = {"__OW_" + name.upper(): text for name, text in self.activation().items()}
        env["__OW_API_HOST"] = "127.0.0.1"
        name = self.path.rpartition("/")[2]
        message = {"value": {"name": name, "binary": False, "main": "main", "env": env}}
        deadline = time.monotonic() + self.timeout
        while True:
            left = deadline - time.monotonic()
            try:
                status, _, data = self.post("/init", message, max(left, RETRY_SECONDS))
                break
            except (BrokenPipeError, ConnectionRefusedError, ConnectionResetError):
                # A port that Docker publishes resets at first.
                if left <= 0:
                    raise ConnectionError(
                        f"No container listens at {self.container}: start it first."
                    ) from None
                time.sleep(RETRY_SECONDS)
            except OSError as error:
                raise ConnectionError(
                    f"The container at {self.container} did not answer POST /init: {error}."
                ) from None
        if status != 200:
            raise ConnectionError(
                f"The container at {self.container} failed to initialize: "
                + data.decode(errors="replace")
            )

    def post(self, path: str, message: Value, seconds: float) -> tuple[int, bool, bytes]:
        """Status, whether there was a Content-Length, and body. Raises OSError, also after the
        seconds."""
        connection = http.client.HTTPConnection(*self.address, timeout=seconds)
        body = json.dumps(message, separators=(",", ":"))
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            sized = response.getheader("Content-Length") is not None
            return response.status, sized, response.read()
        except http.client.RemoteDisconnected:
            raise
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()

    def start(self, value: Value) -> tuple[str, Future[Any]]:
        """An activation's id, and its result; in a thread that keeps nobody from ending this
        process."""
        activation, future = self.activation(), Future[Any]()

        def activate() -> None:
            try:
                future.set_result(self.activate({**activation, "value": value}))
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=activate, daemon=True).start()
        return activation["activation_id"], future

    def activate(self, message: Value) -> Any:
        """The result, of which a record is kept. Raises RefusedError."""
        started = time.time()
        status, result = "action developer error", {"error": EXITED}
        try:
            result = self.run(message)
            status = "application error" if "error" in result else "success"
            return result
        finally:
            self.keep(message, started, {"result": result, "status": status})

    def run(self, message: Value) -> Any:
        """POST /run, again while nothing answers. Raises RefusedError."""
        deadline = time.monotonic() + self.timeout
        while True:
            left = deadline - time.monotonic()
            try:
                if not self.free.acquire(timeout=max(left, 0)):
                    raise socket.timeout
                try:
                    status, sized, data = self.post("/run", message, max(left, RETRY_SECONDS))
                finally:
                    self.free.release()
                break
            except OSError as error:
                if left <= RETRY_SECONDS or isinstance(error, socket.timeout):
                    raise RefusedError(400, FAILED) from None
                time.sleep(RETRY_SECONDS)
        if len(data) > LIMIT:
            sentence = "The action produced a response that exceeded the allowed length: "
            return {"error": f"{sentence}{len(data)} > {LIMIT} bytes."}
        try:
            result = json.loads(data, parse_constant=int) if status == 200 and sized else None
        except ValueError:
            result = None
        if isinstance(result, list):
            raise HttpError(500, "There was an internal server error.")
        if not isinstance(result, dict):
            raise RefusedError(400, FAILED)
        return result

    def keep(self, message: Value, started: float, response: Value) -> None:
        """The activation's record, as in activations.json."""
        ended = time.time()
        size = len(json.dumps(response["result"], ensure_ascii=False).encode("utf-8", "replace"))
        response.update(size=size, success=response["status"] == "success")
        self.records[message["activation_id"]] = {
            "activationId": message["activation_id"],
            "annotations": [
                {"key": "path", "value": self.path},
                {"key": "kind", "value": "blackbox"},
                {"key": "timeout", "value": ended - started > self.timeout},
            ],
            "duration": int((ended - started) * 1000),
            "end": int(ended * 1000),
            "logs": [],  # the container's terminal has them
            "name": self.path.rpartition("/")[2],
            "namespace": message["namespace"],
            "publish": False,
            "response": response,
            "start": int(started * 1000),
            "subject": message["namespace"],
            "version": message["action_version"],
        }
        while len(self.records) > KEPT:
            self.records.pop(next(iter(self.records)), None)


# ---- The controller ----

ENVIRONMENT = threading.Lock()  # of results.py, which is this process's


class Handler(WSGIRequestHandler):
    """Hands the request over as it came: the whole target, and each header by itself."""

    def make_environ(self) -> dict[str, Any]:
        headers = self.headers.items()
        return {
            **super().make_environ(),
            "devserver.target": self.path,
            "devserver.headers": headers,
        }

    def connection_dropped(self, error: BaseException, environ: Any = None) -> None:
        self.close_connection = True

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


class WebAction:
    """The WSGI app behind the URL: a request becomes a value, a result becomes the response."""

    def __init__(
        self,
        container: str,
        *,
        raw: bool = True,
        namespace: str = "guest",
        package: str = "default",
        action: str = "rec",
        timeout: float = 60,
        concurrency: int = 1,
        wait: float = BLOCKING_SECONDS,
        secret: str = "",
        parameters: dict[str, str] | None = None,
        keeps_results: bool = False,
    ) -> None:
        self.path = f"/api/v1/web/{namespace}/{package}/{action}"
        self.own_name = action if package == "default" else f"{package}/{action}"
        self.invoker = Invoker(container, f"{namespace}/{self.own_name}", timeout, concurrency)
        self.raw, self.wait, self.secret = raw, wait, secret
        self.action, self.parameters, self.keeps_results = action, parameters or {}, keeps_results

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        transaction_id = uuid.uuid4().hex
        try:
            status, headers, body = self.respond(environ)
        except RefusedError as refused:
            status, headers, body = refused.reply(transaction_id)
        except HttpError as error:
            headers = [("Content-Type", "text/plain; charset=UTF-8")]
            status, body = error.status, str(error).encode()
        headers.append(("X-Request-ID", transaction_id))
        if status not in BODILESS:
            headers.append(("Content-Length", str(len(body))))
        start_response(f"{status} {http.client.responses.get(status, 'Custom')}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" or status in BODILESS else [body]

    def respond(self, environ: dict[str, Any]) -> Reply:
        """What the controller does from a request to its response. Raises RefusedError, HttpError
        and ConnectionResetError."""
        method = environ["REQUEST_METHOD"]
        if method not in METHODS:
            raise plainly(405, NOT_ALLOWED)
        path, _, query = environ["devserver.target"].partition("?")
        if path.startswith(API):
            return self.api(path[len(API) :], environ)
        action, rest = self.match(collapse_dots(path))
        body, headers = body_of(environ), headers_of(environ)
        cors = [
            ("Access-Control-Allow-Origin", "*"),
            ("Access-Control-Allow-Methods", "OPTIONS, GET, DELETE, POST, PUT, HEAD, PATCH"),
            (
                "Access-Control-Allow-Headers",
                headers.get("access-control-request-headers", CORS_HEADERS),
            ),
        ]
        if method == "OPTIONS":
            return 200, cors, b""
        if self.secret not in ("", headers.get("x-require-whisk-auth")):
            raise RefusedError(401, UNAUTHORIZED, cors)
        if action == self.path:
            value = value_of(method, headers, rest, query, body, self.raw, self.parameters)
            activation_id, future = self.invoker.start(value)
        else:
            value = value_of(method, headers, rest, query, body, True, {"MODEL": self.action})
            activation_id, future = self.read_results(value, environ["SERVER_PORT"])
        cors.append(("x-openwhisk-activation-id", activation_id))
        try:
            result = future.result(self.wait)
            status, own_headers, content = result_as_http(result.get("error", result))
        except FutureTimeoutError:
            check_accepted(202, "application/json", headers)
            raise RefusedError(202, "Response not yet ready.", cors) from None
        except RefusedError as refused:
            raise RefusedError(refused.status, refused.sentence, cors) from None
        if content:
            check_accepted(status, dict(own_headers)["Content-Type"], headers)
        if status in BODILESS:
            own_headers = [pair for pair in own_headers if pair[0] != "Content-Type"]
        return status, cors + own_headers, content

    def match(self, path: str) -> tuple[str, str]:
        """The path of an action's URL, and the rest behind its extension. Raises RefusedError for
        other URLs."""
        for action in (self.path, self.path + "-results")[: 1 + self.keeps_results]:
            for extension in ("", *EXTENSIONS):
                if (unquote(path) + "/").startswith(action + extension + "/"):
                    segments = path.split("/")[len(self.path.split("/")) :]
                    rest = ["/" + quote(unquote(part), safe=SEGMENT_SAFE) for part in segments]
                    return action, "".join(rest)
        raise RefusedError(404, NOT_FOUND)

    def read_results(self, value: Value, port: str) -> tuple[str, Future[Any]]:
        """An activation of results.py, which asks this server's API."""
        future = Future[Any]()
        with ENVIRONMENT:
            os.environ["__OW_ACTION_NAME"] = f"/{self.invoker.path}-results"
            os.environ["__OW_API_HOST"] = f"http://127.0.0.1:{port}"
            os.environ["__OW_API_KEY"] = KEY
            future.set_result(results.main(value))
        return uuid.uuid4().hex, future

    def api(self, path: str, environ: dict[str, Any]) -> Reply:
        """The parts of OpenWhisk's that results.py asks: activations, and the action's invocation
        without waiting. Raises RefusedError."""
        authorization = environ.get("HTTP_AUTHORIZATION")
        if not authorization:
            sentence = (
                "The resource requires authentication, which was not supplied with the request"
            )
            raise RefusedError(401, sentence)
        if authorization != "Basic " + base64.b64encode(KEY.encode()).decode():
            raise RefusedError(401, "The supplied authentication is invalid")
        kind, _, name = path.partition("/")
        if environ["REQUEST_METHOD"] == "POST" and [kind, name] == ["actions", self.own_name]:
            value = {**json.loads(body_of(environ)), **self.parameters}
            activation_id, _ = self.invoker.start(value)
            return 202, [JSON_TYPE], json.dumps({"activationId": activation_id}).encode()
        activation_id, _, part = name.partition("/")
        length = len(unquote(activation_id))
        if kind == "activations" and length != 32:
            raise RefusedError(400, f"Activation id length is {length} but must be 32.")
        record = self.invoker.records.get(activation_id, {})
        logs = {"logs": record.get("logs")}
        found = {"": record, "result": record.get("response"), "logs": record and logs}.get(part)
        if kind != "activations" or not found:
            raise RefusedError(404, NOT_FOUND)
        return 200, [JSON_TYPE], json.dumps(found).encode()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "container",
        metavar="CONTAINER_URL",
        help="where openwhisk.py listens, like http://127.0.0.1:8080",
    )
    add("--port", type=int, default=3233, help="of this server (default: %(default)s)")
    add(
        "--web",
        choices=("raw", "true"),
        default="raw",
        help="as of 'wsk action update' (default: %(default)s)",
    )
    add("--namespace", default="guest", help="(default: %(default)s)")
    add("--package", default="default", help="(default: %(default)s)")
    add("--action", default="max-ocr", help="the action's name (default: %(default)s)")
    add(
        "--timeout",
        type=float,
        default=60,
        help="the action's time limit in seconds (default: %(default)s)",
    )
    add(
        "--concurrency",
        type=int,
        default=1,
        help="activations at once in the container (default: %(default)s)",
    )
    add(
        "--wait",
        type=float,
        default=BLOCKING_SECONDS,
        help="seconds that a client waits (default: %(default)s)",
    )
    add(
        "--results", action="store_true", help="the action ACTION-results too, as RESULTS=1 deploys"
    )
    add("--secret", default="", help="as of 'wsk action update --web-secure'")
    add(
        "--param",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="bound to the action; may be repeated",
    )
    options = vars(parser.parse_args())
    port, web, keeps_results = (options.pop(name) for name in ("port", "web", "results"))
    parameters = dict(options.pop("param"))
    if not 0 < port < 65536:
        parser.error("--port must be from 1 to 65535.")
    if options["concurrency"] < 1:
        parser.error("--concurrency must be 1 or more.")
    try:
        action = WebAction(
            **options, raw=web == "raw", parameters=parameters, keeps_results=keeps_results
        )
        server = make_server("127.0.0.1", port, action, threaded=True, request_handler=Handler)
        action.invoker.init()
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(str(error))
    print(f"http://127.0.0.1:{port}{action.path}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
