"""Serves a model's HTTP API as an Apache OpenWhisk web action: POST /init, POST /run.

OpenWhisk's controller turns a caller's HTTP request into a message, its invoker posts that to /run
of a container, once for each activation, and the controller turns the result into the caller's HTTP
response. Messages and results are recorded in tests/recordings. Any other request to the port is
the model's own HTTP, so the same image serves without OpenWhisk too.

`main`, at the end, is where to begin; before it, a message's way to the model's app and back.
Runs on Python 3.6 and newer, with the Flask and Werkzeug of the model's image.
"""

import ast
import atexit
import binascii
import builtins
import contextlib
import ctypes
import functools
import gzip
import importlib
import inspect
import io
import itertools
import json
import operator
import os
import queue
import re
import signal
import sys
import threading
import time
import traceback
import types
import zlib
from concurrent.futures import Future
from http.server import HTTPServer
from importlib.machinery import SourceFileLoader
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Set, Tuple, Union
from urllib.parse import quote, unquote, urlencode

import werkzeug
from werkzeug import datastructures, serving
from werkzeug.http import parse_accept_header

__version__ = "1.1.0"

Record = Dict[str, Any]
WSGIApp = Callable[..., Iterable[bytes]]


# ---- Settings ----

ORIGINS = r"(app|\*|https?://[^\s,/]+( https?://[^\s,/]+)*)?\Z"
SETTINGS: Dict[str, Tuple[str, Callable[[str], Any], str]] = {
    # variable: default, which text is valid, how an error describes that
    "PORT": ("8080", lambda text: text.isdecimal() and 0 < int(text) < 65536, "from 1 to 65535"),
    "WSGI_APP": (
        "",
        re.compile(r"([\w.]+:[^\d\W][\w.]*(\(.*\))?)?\Z").match,
        "module:attribute or module:factory()",
    ),
    "PREDICT_PATH": ("/model/predict", re.compile(r"/[^?#\s]*\Z").match, "a path like /predict"),
    "RESULT_LIMIT": ("1048576", str.isdecimal, "a number of bytes, or 0 for no limit"),
    "BASE_PATH": ("", lambda text: True, "a path"),  # `base_path` ignores one that it can't take
    "CORS": ("", re.compile(ORIGINS).match, "app, * or origins like https://example.com"),
}
# An action may have these as parameters, too; what is bound to it no caller can override.
BOUND = ("PREDICT_PATH", "BASE_PATH")
BOUND_RAW = (*BOUND, "CORS")  # under --web raw, where no parameter is a caller's


def check_setting(name: str, text: Any) -> str:
    """The text; raises ValueError with a sentence if it is not valid."""
    _, is_valid, wanted = SETTINGS[name]
    if not isinstance(text, str) or not is_valid(text):
        raise ValueError("%s must be %s, not %.200r" % (name, wanted, text))
    return text


def read_settings() -> Dict[str, str]:
    """SETTINGS as the environment has them; exits with a sentence about one that is not valid."""
    texts = {
        name: os.environ.get(name) or default
        for name, (default, _, _) in SETTINGS.items()
        if name != "BASE_PATH" or name in os.environ  # an empty one is the root
    }
    try:
        return {name: check_setting(name, text) for name, text in texts.items()}
    except ValueError as error:
        sys.exit("%s." % error)


def with_bound(settings: Dict[str, str], value: Record) -> Dict[str, str]:
    """The settings of this action; raises ValueError with a sentence if one is not valid."""
    names = BOUND_RAW if "__ow_query" in value else BOUND
    bound = {name: check_setting(name, value[name]) for name in names if name in value}
    return {**settings, **bound}


# ---- What the controller carries as text, and what as base64 ----

# Text (tests/recordings/text_media_types.json); all else is base64.
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
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # https://www.rfc-editor.org/rfc/rfc9110#name-tokens
PARAMETER = r'\s*;\s*{0}=(?:{0}|"(?:[^"\\]|\\.)*")'.format(TOKEN)
CONTENT_TYPE = re.compile(r"\s*({0}/{0})((?:{1})*)[\s;]*\Z".format(TOKEN, PARAMETER))
CACHED = 8  # texts that a caller may make long
CHARSET = re.compile(r";\s*charset=[\"']?([^\"';\s]+)[\"']?", re.IGNORECASE)


class MediaType(NamedTuple):
    """A Content-Type as the controller understands it."""

    kind: str = ""  # in lower case, empty if it is absent or malformed
    charset: str = ""  # in lower case, empty if it is absent
    is_text: bool = False  # else it is base64
    is_json: bool = False  # of which the controller takes base64, too, and makes parameters


@functools.lru_cache(CACHED)
def media_type(content_type: str) -> MediaType:
    """What the controller makes of it (tests/recordings/README.md)."""
    found = CONTENT_TYPE.match(content_type)
    if not found:
        return MediaType()
    kind, parameters = found.group(1).lower(), found.group(2)
    charset = CHARSET.search(parameters)
    # Python's own utf-8-sig would take a byte order mark away.
    name = charset.group(1).lower().replace("-sig", "") if charset else ""
    has_others = CHARSET.sub("", parameters).strip() != ""
    return MediaType(kind, name, is_text(kind, name), is_json(kind) and not has_others)


def is_json(kind: str) -> bool:
    """Whether it is a name of JSON, which is JSON for the controller if it has no parameters."""
    return kind == "application/json" or kind.endswith("+json")


def is_text(kind: str, charset: str) -> bool:
    """Whether the controller carries it as text."""
    return kind in TEXT or (charset != "" and not kind.startswith(BINARY))


# ---- The message's ids go into the environment ----

IDS = {  # of a message: in the environ
    name: "openwhisk." + name
    for name in (
        "action_name action_version activation_id api_key deadline namespace transaction_id"
    ).split()
}
OW_NAME = re.compile(r"__OW_[A-Z_]{1,40}\Z")
# The controller takes as many of a caller's X-Request-ID, which is one of them; longer texts would
# leave no room in the environment of child processes.
ID_BYTES = 8192
CONTROL_CHARACTER = re.compile(r"[\0-\x08\x0a-\x1f\x7f]")  # but for the tab, as in headers
MILLISECONDS = re.compile(r"[0-9]{1,20}\Z")
# By name what C's environment points to. os.environ's setenv() keeps all that it is ever given
# (270 bytes an activation), so these buffers are written over.
C_VARIABLES: Dict[str, Any] = {}
putenv = ctypes.PyDLL(None).putenv


def first_line(text: str) -> str:
    """Of what a caller's header was: the controller may take the next header along after a byte
    that is not UTF-8 (tests/recordings/README.md)."""
    return text.partition("\r")[0]


def checked(variables: Record) -> Dict[str, str]:
    """OpenWhisk's names, ids and times as texts; raises ValueError for what can be none."""
    texts = {name: first_line(str(value)) for name, value in variables.items()}
    for name, text in texts.items():
        is_line = type(variables[name]) in (int, str) and not CONTROL_CHARACTER.search(text)
        if not is_line or len(text.encode()) > ID_BYTES:
            raise ValueError("%s is not a line of at most %d bytes" % (name, ID_BYTES))
        if name.lower().endswith("deadline") and not MILLISECONDS.match(text):
            raise ValueError("%s is not in milliseconds" % name)
    return texts


def export(variables: Dict[str, str]) -> None:
    """Into os.environ, and into the environment that child processes get."""
    for name, text in variables.items():
        if name not in C_VARIABLES:  # the first buffer stays, though two activations come at once
            C_VARIABLES.setdefault(name, ctypes.create_string_buffer(ID_BYTES + 100))
        C_VARIABLES[name].value = (name + "=" + text).encode()
        putenv(C_VARIABLES[name])  # again and again, as the model may have changed os.environ
        os.environ._data[name.encode()] = text.encode()  # type: ignore[attr-defined]


# ---- The message becomes a WSGI environ ----

RESERVED = {"__ow_" + name for name in ("method", "headers", "path", "user", "query", "body")}
NO_PARAMETERS = RESERVED.union(BOUND_RAW)

# The JSON parser takes 0.8 ms for a body of 1 MB, cutting the body out first 0.03 ms.
LONG_BODY = re.compile(rb'"__ow_body": ?"')
PLACEHOLDER = "the body is " + os.urandom(16).hex()

# Segments that are neither empty nor dots, of what a browser doesn't take for something else.
BASE_PATH_SHAPE = re.compile(r"((/(?!\.{1,2}(/|\Z))[^/\\?#%\s\0-\x1f\x7f]+)*)/?\Z")

# X_A and X-A are one name in an environ. Before 2.3, when its datastructures became a package,
# Werkzeug's server joined their values; since then it takes X-A, as nginx does.
JOINS_NAMES = not hasattr(datastructures, "__path__")
HEADERS_LENGTH = 1 << 19  # of their texts; no controller takes more
# The app sees no HTTP_ variables of these; the proxy compresses.
NOT_SEEN = {"ACCEPT_ENCODING", "CONTENT_LENGTH", "CONTENT_TYPE"}


def short_int(digits: str) -> int:
    """Python refuses more of them since 3.11, as 1 MB takes 13 s; raises ValueError, too."""
    if len(digits) > 4300:
        raise ValueError("a number has over 4300 digits")
    return int(digits)


from_json = json.JSONDecoder(parse_int=short_int).decode


def parse(data: bytes) -> Any:
    """The JSON of POST /init or /run. A long __ow_body of --web raw comes as a memoryview.

    Raises any Exception if it is malformed.
    """
    found = LONG_BODY.search(data) if len(data) > 65536 else None
    if found:
        begin, end = found.end(), data.find(b'"', found.end())
        if data.find(b"\\", begin, end) < 0:
            message = from_json((data[:begin] + PLACEHOLDER.encode() + data[end:]).decode())
            value = message["value"]
            if value.get("__ow_body") == PLACEHOLDER and isinstance(value.get("__ow_query"), str):
                value["__ow_body"] = memoryview(data)[begin:end]
                return message
    return from_json(data.decode())


try:  # OpenSSL, which Python's ssl brings along, decodes 1 MB in 0.6 ms, Python in 1.7 to 3.1
    import _ssl

    EVP_DecodeBlock: Any = ctypes.PyDLL(_ssl.__file__).EVP_DecodeBlock
    EVP_DecodeBlock.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int)
    EVP_DecodeBlock.restype = ctypes.c_int
except (ImportError, AttributeError, OSError):  # pragma: no cover, where it is built in
    EVP_DecodeBlock = None


def decode_base64(text: bytes) -> bytes:
    """Raises ValueError for anything but whole groups of four characters."""
    padding = text.count(b"=", -2)
    if len(text) <= 4096 or not EVP_DecodeBlock:  # Python takes at most 12 us
        data = binascii.a2b_base64(text)
        is_whole = (len(data) + padding) * 4 == len(text) * 3
    else:
        size = len(text) // 4 * 3
        buffer = bytearray(size + 1)
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        is_whole = (
            len(text) % 4 == 0  # else OpenSSL may have skipped spaces
            and EVP_DecodeBlock(address, text, len(text)) == size
            and text.find(b"=", 0, len(text) - padding) < 0  # for OpenSSL = is a zero
        )
        data = bytes(memoryview(buffer)[: size - padding])
    if not is_whole:
        raise ValueError("__ow_body is not base64")
    return data


class Base64Input(io.RawIOBase):
    """A wsgi.input that decodes as the app reads: 5 MB in 0.6 of the time, as memory for all of it
    takes longer than decoding. Raises ValueError where it is not base64."""

    def __init__(self, text: memoryview) -> None:
        self.text, self.rest = text, b""

    def __len__(self) -> int:
        return len(self.text) // 4 * 3 - bytes(self.text[-2:]).count(b"=")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.rest:
            length = max(len(buffer) // 3, 1) * 4
            self.rest, self.text = decode_base64(bytes(self.text[:length])), self.text[length:]
        data, self.rest = self.rest[: len(buffer)], self.rest[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def query_and_body(value: Record, headers: Record) -> Tuple[str, Union[bytes, Base64Input]]:
    """As the client sent them (--web raw), or made again from the parameters (--web true).

    Raises any Exception if the message is malformed.
    """
    media = media_type(headers.get("content-type", ""))
    query, body = value.get("__ow_query"), value.get("__ow_body", "")
    if query is None:  # OpenWhisk has made parameters of query and body
        parameters = {name: value[name] for name in value if name not in NO_PARAMETERS}
        has_body = "__ow_body" in value
        if not has_body and value["__ow_method"] not in ("get", "head"):
            if media.is_json:
                return "", json.dumps(parameters).encode()
            if media.kind == "application/x-www-form-urlencoded":
                return "", urlencode(parameters).encode()
        query = urlencode(parameters)
        if has_body and media.is_json:
            return query, json.dumps(body).encode()
    # Of all JSON only this type comes in base64 (tests/recordings/README.md).
    is_base64 = not media.is_text or (media.is_json and media.kind == "application/json")
    if isinstance(body, memoryview):
        return query, Base64Input(body) if is_base64 else bytes(body)
    data = body.encode("utf-8", "replace")
    return query, decode_base64(data) if is_base64 else data


@functools.lru_cache()
def action_path(action_name: str) -> str:
    """The path of the web action's URL: that of /guest/ocr is /api/v1/web/guest/default/ocr."""
    namespace, *package, name = action_name.strip("/").split("/")
    return "/".join(["/api/v1/web", namespace, *(package or ["default"]), name])


def base_path(message: Record, settings: Dict[str, str]) -> str:
    """The path under which the caller sees the model; empty for the root.

    That of the proxy in front (the last one, as for Werkzeug's ProxyFix), else that of the
    settings, else the web action's.
    """
    headers = message["value"].get("__ow_headers", {})
    for prefix in (headers.get("x-forwarded-prefix"), settings.get("BASE_PATH")):
        if prefix is not None:
            path = unquote(prefix.rpartition(",")[2].strip())
            found = BASE_PATH_SHAPE.match(path)
            if found:
                return found.group(1)
            log("The base path %.200r is ignored: it should be like /models/ocr." % path)
    name = message.get("action_name") or os.environ.get("__OW_ACTION_NAME")
    return action_path(name or "/guest/action")


@functools.lru_cache(CACHED)
def quoted(path: str) -> str:
    """As in URLs; the path is bytes in the shape of latin-1."""
    return quote(path, "/!$&'()*+,;=:@~", "latin-1")


is_ascii = getattr(str, "isascii", lambda text: False)  # from Python 3.7 on


def wsgi_text(text: str) -> str:
    """Bytes in the shape of latin-1: https://peps.python.org/pep-3333/#unicode-issues."""
    return text if is_ascii(text) else text.encode("utf-8", "replace").decode("latin-1")


# What the controller makes of bytes that are not UTF-8: U+FFE9 of 0xE9.
NOT_UTF_8 = re.compile("([\uffc0-\ufff7][\uff80-\uffff]*)")
AS_SENT = {0xFF00 + byte: byte for byte in range(0x80, 0x100)}


def header_text(text: str) -> str:
    """A header's bytes as the caller sent them, in the shape of latin-1."""
    parts = NOT_UTF_8.split(first_line(text))
    return "".join(
        part.translate(AS_SENT) if NOT_UTF_8.match(part) else wsgi_text(part) for part in parts
    )


@functools.lru_cache()
def environ_key(header: str) -> str:
    """HTTP_X_A for x-a; empty for what the app is not to see. Raises ValueError for a long name."""
    if len(header) > 1000:
        raise ValueError("the name of a header is longer than 1000 characters")
    if header == "content-type":
        return "CONTENT_TYPE"
    name = header.upper().replace("-", "_")
    return "" if name in NOT_SEEN else "HTTP_" + name


def http_variables(headers: Dict[str, str]) -> Record:
    """The variables of an environ that are the caller's headers."""
    variables: Record = {}
    for header in sorted(headers):  # X-A before X_A
        key, text = environ_key(header), headers[header]
        if key not in variables:
            variables[key] = text
        elif JOINS_NAMES:  # pragma: no cover, before Werkzeug 2.3
            variables[key] += "," + text
    variables.pop("", None)
    return variables


def environ_of(message: Record, settings: Dict[str, str]) -> Record:
    """The WSGI environ of a web action's POST /run (tests/recordings/requests.json).

    Raises any Exception if the message is malformed; that of a long body only as the app reads it.
    """
    value = message["value"]
    headers = value.get("__ow_headers", {})
    texts = "".join(headers.values())
    if len(texts) > HEADERS_LENGTH:
        raise ValueError("the headers take over %d bytes" % HEADERS_LENGTH)
    if not is_ascii(texts):
        headers = {name: header_text(text) for name, text in headers.items()}
    method, path = value["__ow_method"].upper(), value.get("__ow_path") or settings["PREDICT_PATH"]
    query, body = query_and_body(value, headers)
    path, query = wsgi_text(path), wsgi_text(query)
    base = wsgi_text(base_path(message, settings))
    stream: Any = io.BytesIO(body) if isinstance(body, bytes) else io.BufferedReader(body, 65536)
    https = headers.get("x-forwarded-proto", "").split(",")[0].strip().lower() == "https"
    host = headers.get("x-forwarded-host", "").split(",")[0].strip()
    host = host or headers.get("host") or "localhost"
    name, _, port = host.rpartition(":")
    if not port.isdecimal():
        name, port = host, "443" if https else "80"
    uri = quoted(base) + path + ("?" + query if query else "")
    environ = {
        **http_variables(headers),
        "REQUEST_METHOD": wsgi_text(method),
        "SCRIPT_NAME": base,
        "PATH_INFO": unquote(path, "latin-1"),
        "QUERY_STRING": query,
        "REQUEST_URI": uri,
        "RAW_URI": uri,
        "SERVER_NAME": name,
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": host,
        # Of the platform's proxy; those before it are hearsay.
        "REMOTE_ADDR": headers.get("x-forwarded-for", "").rpartition(",")[2].strip(),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https" if https else "http",
        "wsgi.input": stream,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    if len(body) or method in ("POST", "PUT", "PATCH"):
        environ["CONTENT_LENGTH"] = str(len(body))
        environ["wsgi.input_terminated"] = True  # spares the app counting, as under gunicorn
    if "__ow_user" in value:
        environ["REMOTE_USER"] = wsgi_text(value["__ow_user"])
    if "HTTP_IF_MATCH" in environ:  # has an ETag which `compress` has made weak
        environ["HTTP_IF_MATCH"] = environ["HTTP_IF_MATCH"].replace('W/"', '"')
    return environ


# ---- The call ----

HeaderList = List[Tuple[str, str]]
Response = Tuple[str, HeaderList, bytes]  # status, headers, body

LIMIT_KEY = "web_action.result_limit"  # in the environ
# How many times RESULT_LIMIT an answer may be: gzip makes JSON smaller by no more.
ANSWER_FACTOR = 32
HTTP_LIMIT = 1 << 23  # past OpenWhisk, where an app is called one at a time


class NoAnswerError(Exception):
    """The caller gets this status and a sentence instead of the app's answer."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def too_large(size: str, limit: int, or_gzip: str = "") -> NoAnswerError:
    """Of an answer that takes more bytes as a result than OpenWhisk allows."""
    return NoAnswerError(
        500,
        "The answer takes %s bytes as a result and OpenWhisk's limit is %d: ask for less of it%s, "
        "or raise the limit of the cluster and, to match it, RESULT_LIMIT."
        % (size, limit, or_gzip),
    )


def call(app: WSGIApp, environ: Record) -> Response:
    """The app's whole response, with all that https://peps.python.org/pep-3333/ allows an app.

    Raises NoAnswerError as soon as it is too large for a result of the environ's limit (bytes; 0
    or none: any size), and what the app raises.
    """
    started: Any = None
    chunks: List[bytes] = []
    limit = environ.get(LIMIT_KEY, 0)
    most = left = limit * ANSWER_FACTOR or sys.maxsize

    def write(data: bytes) -> None:
        nonlocal left
        left -= len(data) or 1  # for an endless row of nothing, too
        if left < 0:
            raise too_large("over %d" % most, limit)
        chunks.append(data)

    def start_response(status: str, headers: HeaderList, exc_info: Any = None) -> Any:
        nonlocal started
        if exc_info and chunks:
            raise exc_info[1]
        started = status, [(str(name), str(text)) for name, text in headers]
        return write

    iterable = app(dict(environ), start_response)  # a copy, as an app may change it
    try:
        for data in iterable:
            write(data)
    finally:
        try:
            if hasattr(iterable, "close"):
                iterable.close()
        except Exception:  # a server has sent the answer by then
            log(traceback.format_exc())
    status, headers = started
    return status, headers, b"".join(chunks)


class OneAtATime:
    """An app that asked for one request at a time: the thread that started it calls it."""

    def __init__(self, app: WSGIApp) -> None:
        self.app = app
        self.calls: Any = queue.Queue()

    def __call__(self, environ: Record, start_response: Callable[..., Any]) -> Iterable[bytes]:
        future: Any = Future()
        has_end = environ.get("wsgi.input_terminated")
        size = -1 if has_end else max(0, int(environ.get("CONTENT_LENGTH") or 0))
        body = environ["wsgi.input"].read(size)  # here, so that nobody waits for a slow client
        environ.update({"wsgi.input": io.BytesIO(body), "wsgi.multithread": False})
        environ.setdefault(LIMIT_KEY, HTTP_LIMIT)
        self.calls.put((future, environ))
        status, headers, answer = future.result()
        start_response(status, headers)
        return [answer]

    def serve_one(self, seconds: float) -> None:
        """The next call; raises queue.Empty if none comes in time."""
        future, environ = self.calls.get(timeout=seconds)
        try:
            future.set_result(call(self.app, environ))
        except BaseException as error:
            future.set_exception(error)


# ---- The response becomes a result ----

# Headers that the controller sets itself.
SET_BY_CONTROLLER = {"connection", "content-length", "date", "server", "transfer-encoding"}
HEADER = re.compile(TOKEN + r"\n[\t -~\x80-\xff]*\Z")  # name and text, on two lines
# JSON may be text or base64, and is taken for base64 whenever it looks like it; the controller
# ignores spaces and control characters around it.
LOOKS_BASE64 = re.compile(
    r"[\0- ]*(?:[A-Za-z0-9+/]{4})*[A-Za-z0-9+/]{2}(?:[A-Za-z0-9+/]{2}|[A-Za-z0-9+/]=|==)[\0- ]*\Z"
)
# Compression pays from so many bytes on, and if it leaves this part of the first 16 KiB.
GZIP_BYTES, GZIP_PART = 1000, 0.7
# Bytes written at a time, or made base64: 750 kB in 1.6 ms, all at once in 2.2.
PIECE = 3 << 16
UTF_8 = ("", "utf-8", "utf8")

to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False).encode
Fields = Dict[str, List[str]]  # by a header's name in lower case: its name, and its texts


def failure(error: NoAnswerError, added: Record) -> Record:
    """A result that the caller sees as this status and JSON, and that counts as a failure."""
    headers, body = {"Content-Type": "application/json"}, json.dumps({"error": str(error)})
    return {"error": {"statusCode": error.status, "headers": {**headers, **added}, "body": body}}


def malformed(error: Exception) -> NoAnswerError:
    """Of a message that raised it."""
    sentence = "The message is not valid: %s: %s."
    return NoAnswerError(400, sentence % (type(error).__name__, error))


def result_of(
    response: Response,
    accept_encoding: str = "",
    accept: str = "",
    cors: str = "",
    added: Iterable[Tuple[str, str]] = (),
) -> Record:
    """The result that the controller makes the app's response of (tests/recordings/responses.json).

    With our headers `added`. Its body is bytes where JSON has to hold base64, which `serialize`
    makes of them. Raises NoAnswerError.
    """
    status_line, header_list, body = response
    status, fields = int(status_line.split(None, 1)[0]), fields_of(header_list)
    if cors != "app":  # there is the controller's, or ours
        fields.pop("access-control-allow-origin", None)
    for name, text in added:
        fields.setdefault(name.lower(), [name]).append(text)
    if not 200 <= status <= 599:
        sentence = "The model answered with status %d, which OpenWhisk does not pass on."
        raise NoAnswerError(500, sentence % status)
    if body and status < 400 and not is_accepted(fields, accept):
        # Instead of the controller's 406 it is named as the caller wants it; a redirect goes
        # without its body.
        body = body if status < 300 else b""
        fields["content-type"] = named_type(fields, accept)
    if "gzip" in accept_encoding and parse_accept_header(accept_encoding)["gzip"]:
        body = compress(fields, body)
    content = encode_body(fields, body) if body and status not in (204, 205, 304) else ""
    headers = {name: texts if texts[1:] else texts[0] for name, *texts in fields.values()}
    # The body comes last, for `serialize`.
    result = {"statusCode": status, "headers": headers, "body": content}
    if status < 500:
        return result
    if isinstance(content, bytes):
        result["body"] = binascii.b2a_base64(content, newline=False).decode()
    return {"error": result}


def cors_headers(cors: str, environ: Record) -> Record:
    """What lets a page of another origin call an action with the annotation web-custom-options, to
    whose answers the controller adds nothing: https://fetch.spec.whatwg.org/#http-cors-protocol.
    Empty where the setting leaves it to others."""
    if cors in ("", "app"):
        return {}
    origin = "*" if cors == "*" else environ.get("HTTP_ORIGIN", "")
    vary = {} if cors == "*" else {"Vary": "Origin"}
    if origin not in cors.split():
        return vary
    headers = {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": "*", **vary}
    if environ["REQUEST_METHOD"] == "OPTIONS":
        headers["Access-Control-Allow-Methods"] = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
        wanted = environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "")
        headers["Access-Control-Allow-Headers"] = wanted
    return headers


# Of a URL what stands before its path, if that is there, and the host, if that is.
BEFORE_PATH = re.compile(r"(?:https?://([^/?#]*))?(?=/)(?!//)")
DEFAULT_PORT = re.compile(r":(80|443)\Z")  # which Werkzeug leaves out
COOKIE_PATH = re.compile(r"(;\s*path=)(/[^;\s]+)", re.IGNORECASE)


def with_base(headers: HeaderList, environ: Record) -> HeaderList:
    """Redirects, and cookies for a folder, that stay below the web action though the app has left
    out SCRIPT_NAME."""
    base, host = quoted(environ["SCRIPT_NAME"]), environ["HTTP_HOST"]
    texts = []
    for name, text in headers:
        if name.lower() == "location":
            found = BEFORE_PATH.match(text)
            if found and found.group(1) in (None, host, DEFAULT_PORT.sub("", host)):
                text = text[: found.end()] + below_base(text[found.end() :], base)
        elif name.lower() == "set-cookie":
            text = COOKIE_PATH.sub(lambda found: found[1] + below_base(found[2], base), text)
        texts.append((name, text))
    return texts


def below_base(path: str, base: str) -> str:
    """The path, which a query may follow, as the caller sees it."""
    own = unquote(re.split("[?#]", path, maxsplit=1)[0], "latin-1")  # Werkzeugs quote differently
    is_below = (own + "/").startswith(unquote(base, "latin-1") + "/")
    return path if is_below else base + path


BASE_IN_SCHEMA = re.compile(rb'"basePath"\s*:\s*"((?:[^"\\]|\\/)*)"')
RESTX = {"flask_restx", "flask_restplus"}  # whose basePath is for ever that of the first request


def schema_of(body: bytes) -> Record:
    """The schema of Swagger 2 that it is; empty if it is none."""
    if b'"swagger"' not in body:
        return {}
    try:
        schema = from_json(body.decode())
    except (ValueError, RecursionError):
        return {}
    is_schema = isinstance(schema, dict) and str(schema.get("swagger")).startswith("2")
    return schema if is_schema else {}


def with_base_in_schema(body: bytes, environ: Record) -> bytes:
    """With the basePath that the model has for this caller, if it is a schema."""
    schema = schema_of(body)
    own = schema.get("basePath", "")
    if not schema or not isinstance(own, str):
        return body
    base, folder = quoted(environ["SCRIPT_NAME"]), quoted(environ["PATH_INFO"]).rpartition("/")[0]
    is_restx = RESTX.intersection(sys.modules) and own.endswith(folder)
    path = base + folder if is_restx else below_base(own.rstrip("/"), base)
    if path and "basePath" not in schema:  # flasgger's; its Swagger UI would call beside the action
        return body.replace(b"{", b'{"basePath": "%s", ' % path.encode(), 1)
    path = path or "/"
    for found in BASE_IN_SCHEMA.finditer(body):  # the examples in it may have others
        changed = body[: found.start(1)] + path.encode() + body[found.end(1) :]
        if schema_of(changed) == {**schema, "basePath": path}:
            return changed
    return body


def fields_of(headers: HeaderList) -> Fields:
    """The app's headers, but for the controller's own and those that HTTP forbids."""
    fields: Fields = {}
    for name, text in headers:
        key = name.lower()
        if key in SET_BY_CONTROLLER:
            continue
        if HEADER.match(name + "\n" + text):
            fields.setdefault(key, [name]).append(text)
        else:  # for one the controller would drop the connection
            log("The header %r is left out: HTTP does not allow it." % name)
    return fields


def first(fields: Fields, name: str) -> str:
    """The header's first text; empty where there is none."""
    return fields[name][1] if name in fields else ""


def is_accepted(fields: Fields, accept: str) -> bool:
    """Whether the caller takes the type; else the controller answers 406."""
    if "/" not in accept or "*/*" in accept:
        return True
    kind = media_type(first(fields, "content-type")).kind or "application/octet-stream"
    return bool(parse_accept_header(accept, datastructures.MIMEAccept).best_match([kind]))


def named_type(fields: Fields, accept: str) -> List[str]:
    """The field of the first type that the caller names, but for pages, which a browser would run;
    else that which is there."""
    for name, quality in parse_accept_header(accept):
        if quality and "*" not in name and "html" not in name:
            return ["Content-Type", name]
    return fields.get("content-type", ["Content-Type", "application/octet-stream"])


def gzip_pays(fields: Fields, body: bytes) -> bool:
    """Whether gzip makes it much smaller, and the controller can carry it then."""
    media = media_type(first(fields, "content-type"))
    is_utf8_json = media.is_json and media.charset in UTF_8
    carried = not media.is_text or is_utf8_json or "javascript" in media.kind
    if not carried or "content-encoding" in fields or "content-range" in fields:
        return False
    sample = body[:16384]
    return len(body) >= GZIP_BYTES and len(zlib.compress(sample, 1)) <= GZIP_PART * len(sample)


def compress(fields: Fields, body: bytes) -> bytes:
    """With gzip, where it pays; the headers say so then."""
    if not gzip_pays(fields, body):
        return body
    fields["content-encoding"] = ["Content-Encoding", "gzip"]
    vary = fields.setdefault("vary", ["Vary"])
    if "accept-encoding" not in ", ".join(vary).lower():
        vary.append("Accept-Encoding")
    if first(fields, "etag").startswith('"'):
        fields["etag"][1] = "W/" + fields["etag"][1]
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)  # gzip, with no time in it
    return packer.compress(body) + packer.flush()


def encode_body(fields: Fields, body: bytes) -> Union[str, bytes]:
    """Text, or bytes for base64, as the controller expects of the Content-Type.

    Changes a Content-Type with which it could not carry the body. Raises NoAnswerError.
    """
    content_type = first(fields, "content-type").rstrip("; \t")
    media = media_type(content_type)
    if not media.kind:  # then perhaps its parameters are malformed
        content_type = content_type.partition(";")[0]
        media = media_type(content_type)
    if content_type:
        fields["content-type"][1] = content_type
    encoding = first(fields, "content-encoding").lower().replace("identity", "")
    if encoding and "javascript" in media.kind:
        fields["content-type"] = ["Content-Type", "text/javascript"]  # which is base64
        return body
    if not media.is_text or (encoding and media.is_json and media.charset in UTF_8):
        return as_binary(fields, body)
    try:
        text = (unpacked(body, encoding) if encoding else body).decode(media.charset or "utf-8")
    except (LookupError, UnicodeError):  # then it is not what it says
        if media.kind in TEXT and not media.is_json:
            fields["content-type"] = ["Content-Type", "application/octet-stream"]
        return as_binary(fields, body)
    if encoding:
        del fields["content-encoding"]
    if media.is_json and LOOKS_BASE64.match(text):
        return as_binary(fields, text.encode())
    return text


def as_binary(fields: Fields, body: bytes) -> bytes:
    """The body, with a Content-Type of which the controller takes base64."""
    content_type = CHARSET.sub("", first(fields, "content-type")).rstrip()
    if not media_type(content_type).kind:
        content_type = "application/octet-stream"
    fields["content-type"] = ["Content-Type", content_type]
    return body


def unpacked(body: bytes, encoding: str) -> bytes:
    """Text that the app packed, which the controller can't carry. Raises NoAnswerError."""
    try:
        if encoding in ("gzip", "x-gzip"):
            return gzip.decompress(body)
        if encoding == "deflate":  # with zlib's header or, as some send it, without
            return zlib.decompress(body, 15 if body[0] & 15 == 8 else -15)
    except (EOFError, OSError, zlib.error):
        pass
    raise NoAnswerError(
        500,
        "The model's answer is text in the Content-Encoding %s, which OpenWhisk does not carry: "
        "let the model answer without." % encoding,
    )


def plain_result(response: Response) -> Record:
    """The result of an invocation without HTTP: the JSON object of the answer, or its error."""
    status, _, body = response
    try:
        answer = json.loads(body.decode(), parse_constant=int)  # no NaN: that isn't JSON
    except ValueError:
        answer = None
    if status >= "4":
        return {"error": answer or body.decode("utf-8", "replace")}
    return answer if isinstance(answer, dict) else result_of(response)


def may_be_packed(result: Record) -> bool:
    """Whether a caller who accepts gzip gets a smaller answer."""
    headers, body = result.get("headers"), result.get("body")
    if not isinstance(headers, dict) or not body:
        return False
    fields = {name.lower(): [name, str(text)] for name, text in headers.items()}
    return gzip_pays(fields, body if isinstance(body, bytes) else str(body).encode())


def serialize(result: Record, limit: int = 0) -> Tuple[int, Iterable[bytes]]:
    """The size and the pieces of the result's JSON.

    Raises NoAnswerError over the limit (bytes, 0: none), ValueError for NaN, which is not JSON.
    """
    body = result["body"] if isinstance(result.get("body"), bytes) else b""
    text = to_json(dict(result, body="") if body else result)
    data = text.encode("utf-8", "backslashreplace")  # a lone surrogate becomes JSON's escape
    size = len(data) + (len(body) + 2) // 3 * 4
    if 0 < limit < size:
        or_gzip = " or for gzip (curl --compressed)" if may_be_packed(result) else ""
        raise too_large(str(size), limit, or_gzip)
    if not body:
        return size, [data]
    pieces = (body[start : start + PIECE] for start in range(0, len(body), PIECE))
    encoded = (binascii.b2a_base64(piece, newline=False) for piece in pieces)
    return size, itertools.chain([data[:-2]], encoded, [data[-2:]])


# ---- The log ----

SENTINEL = b"XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX\n"  # ends an activation's log on each stream


class Log(io.FileIO):
    """stdout or stderr, unbuffered; knows whether its last line is open."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.descriptor, self.open_line, self.lock = descriptor, False, threading.RLock()
        self.text = io.TextIOWrapper(self, "utf-8", "backslashreplace", write_through=True)

    def write(self, data: Any) -> int:
        with self.lock:
            left = memoryview(data).cast("B")
            if left:
                self.open_line = bytes(left[-1:]) != b"\n"
            while left:  # a signal may interrupt it
                left = left[super().write(left) or 0 :]
            return len(data)

    def put(self, lines: bytes) -> None:
        """On lines of their own, even if the app has closed the stream."""
        with self.lock, contextlib.suppress(OSError):
            os.write(self.descriptor, b"\n" * self.open_line + lines)
            self.open_line = False

    def end(self, stream: Any) -> None:
        """Ends the activation's log, after what a stream holds back that the model has wrapped."""
        with contextlib.suppress(Exception):
            stream.flush()
        self.put(SENTINEL)


STDOUT, STDERR = Log(1), Log(2)


def log(text: str) -> None:
    """On stderr."""
    STDERR.put(text.rstrip().encode("utf-8", "backslashreplace") + b"\n")


# ---- The HTTP server ----


class Handler(serving.WSGIRequestHandler):
    """HTTP/1.1 with one request a connection, as in today's Werkzeug, and no access log."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds for which a client may neither send nor read
    threads: Set[threading.Thread] = set()  # with a request under way

    def setup(self) -> None:
        """Writes in pieces, as a socket's timeout is for the whole of what it is to send."""
        super().setup()
        write = self.wfile.write

        def write_pieces(data: bytes) -> None:
            for start in range(0, len(data), PIECE):
                write(data[start : start + PIECE])

        self.wfile.write = write_pieces  # type: ignore[method-assign,assignment]

    def run_wsgi(self) -> None:
        self.threads.add(threading.current_thread())
        try:
            super().run_wsgi()
        finally:
            self.threads.discard(threading.current_thread())

    def end_headers(self) -> None:
        if not self.close_connection:  # pragma: no cover, before Werkzeug 2.1
            self.send_header("Connection", "close")
        super().end_headers()

    def handle_expect_100(self) -> bool:
        return True  # run_wsgi does it

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


NOT_LOADED = "The model is not loaded; the log says more."
FAILED = "The request failed; the log says why."
ACCEPT_LENGTH = 1000  # Werkzeug takes seconds to understand 8000 spaces
# How many times RESULT_LIMIT a message may be, as its JSON takes more memory.
MESSAGE_FACTOR = 8


class Activation(NamedTuple):
    """What POST /run asks for."""

    value: Record  # of the message
    environ: Record
    cors: str  # the setting
    cors_headers: Record  # of every answer
    is_plain: bool  # an invocation without HTTP, which has only parameters


class Proxy:
    """The WSGI app on the container's port: OpenWhisk's two endpoints, all else is the model's."""

    def __init__(self, model: "Model", settings: Dict[str, str]) -> None:
        self.model, self.settings = model, settings
        self.limit = int(settings["RESULT_LIMIT"])

    def __call__(self, environ: Record, start_response: Callable[..., Any]) -> Iterable[bytes]:
        endpoint = environ["PATH_INFO"] if environ["REQUEST_METHOD"] == "POST" else ""
        headers = [("Content-Type", "application/json")]
        if endpoint in ("/init", "/run"):
            status, size, pieces = self.answer(endpoint, environ)
        elif self.model.is_settled() and not self.model.error:
            return self.model.app(environ, start_response)  # type: ignore[no-any-return]
        else:
            status = "503 Service Unavailable"
            size, pieces = serialize({"error": NOT_LOADED})
            headers.append(("Retry-After", "1"))
        start_response(status, headers + [("Content-Length", str(size))])
        return pieces

    def answer(self, endpoint: str, request: Record) -> Tuple[str, int, Iterable[bytes]]:
        """The status, and the size and pieces of a JSON object, whatever comes; ends the log."""
        added: Record = {}
        try:
            if endpoint == "/init":
                result = self.init(request)
            else:
                activation = self.activation(request)
                added = activation.cors_headers
                result = self.run(activation)
            size, pieces = serialize(result, self.limit)
        except BaseException as error:  # sys.exit(), too
            if not isinstance(error, NoAnswerError):
                log(traceback.format_exc())
                error = NoAnswerError(500, FAILED)
            result = failure(error, added)
            size, pieces = serialize(result)
        failed = "error" in result
        if failed or endpoint == "/run":
            STDOUT.end(sys.stdout)
            STDERR.end(sys.stderr)
        status = "502 Bad Gateway" if failed and endpoint == "/init" else "200 OK"
        return status, size, pieces

    def message(self, request: Record) -> Any:
        """The request's JSON; raises any Exception if it is malformed or too long."""
        size = int(request["CONTENT_LENGTH"])
        if 0 < self.limit * MESSAGE_FACTOR < size:
            raise ValueError("it takes %d bytes, and RESULT_LIMIT is %d" % (size, self.limit))
        return parse(request["wsgi.input"].read(max(0, size)))

    def init(self, request: Record) -> Record:
        """Waits for the model, and takes over the platform's part of the environment."""
        try:
            env = self.message(request)["value"].get("env", {})
            variables = checked({name: env[name] for name in env if OW_NAME.match(name)})
            if len(variables.keys() | C_VARIABLES.keys()) > 100:
                raise ValueError("there are more than 100 variables")
        except Exception as error:
            raise malformed(error) from error
        failed = self.model.wait(variables.get("__OW_DEADLINE", ""))
        export(variables)
        return {"error": failed} if failed else {"ok": True}

    def activation(self, request: Record) -> Activation:
        """The message -> environ; the ids go into the environment."""
        try:
            message = self.message(request)
            value = message["value"]
            is_plain = "__ow_method" not in value
            if is_plain:
                http = {"__ow_method": "post", "__ow_headers": {"content-type": "application/json"}}
                message["value"] = {**value, **http}
            ids = checked({name: message[name] for name in IDS if name in message})
            settings = with_bound(self.settings, value)
            environ = environ_of(message, settings)
        except Exception as error:
            raise malformed(error) from error
        environ.update({IDS[name]: text for name, text in ids.items()})
        environ[LIMIT_KEY] = self.limit
        export({"__OW_" + name.upper(): text for name, text in ids.items()})
        cors = "" if is_plain else settings["CORS"]
        return Activation(value, environ, cors, cors_headers(cors, environ), is_plain)

    def run(self, activation: Activation) -> Record:
        """environ -> app -> result. What does not reach the app: a message that `activation` takes
        for malformed, a preflight that CORS answers, and what comes before the model is loaded, or
        though it has failed.

        Raises NoAnswerError, and what the app raises.
        """
        environ, method = activation.environ, activation.environ["REQUEST_METHOD"]
        is_preflight = method == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
        if is_preflight and activation.cors_headers:
            return {"statusCode": 204, "headers": activation.cors_headers, "body": ""}
        failed = self.model.wait(environ.get(IDS["deadline"], ""))
        if failed:
            log(failed)
            raise NoAnswerError(503, NOT_LOADED)
        if activation.is_plain:
            return plain_result(call(self.model.app, environ))
        return self.web_result(activation)

    def web_result(self, activation: Activation) -> Record:
        """Of the app's answer; but a browser at the bare URL sees Swagger UI if GET has none."""
        value, environ = activation.value, activation.environ
        response = self.respond(environ)
        is_bare = value["__ow_method"] == "get" and not value.get("__ow_path")
        accept = environ.get("HTTP_ACCEPT", "")[:ACCEPT_LENGTH]
        if is_bare and "text/html" in accept and response[0][:3] in ("404", "405"):
            base = quoted(environ["SCRIPT_NAME"])
            to_base: Response = ("302 Found", [("Location", base + "/")], b"")
            response = to_base if base else self.respond({**environ, "PATH_INFO": "/"})
        encoding = value.get("__ow_headers", {}).get("accept-encoding", "")[:ACCEPT_LENGTH]
        added = activation.cors_headers.items()
        return result_of(response, encoding, accept, activation.cors, added)

    def respond(self, environ: Record) -> Response:
        """The app's answer; to a HEAD with a GET's body, as the controller takes the Content-Length
        from that."""
        status, headers, body = call(self.model.app, environ)
        if environ["REQUEST_METHOD"] == "HEAD":
            body = call(self.model.app, {**environ, "REQUEST_METHOD": "GET"})[2]
        if environ["PATH_INFO"].endswith(".json"):
            body = with_base_in_schema(body, environ)
        return status, with_base(headers, environ), body


# ---- The life cycle ----

LOOK_SECONDS = 0.2  # between two looks at a script that has not run its app yet
TOO_SLOW = (
    "The model did not load within the action's time limit; 'wsk action update --timeout' gives it "
    "longer. If its script goes on for ever, name its app: WSGI_APP=module:attribute. It is in %s."
)
LOAD_FAILED = "The model failed to load from %s: %s: %s"
LIBRARY = re.compile(
    r"<frozen|.*/(site|dist)-packages/|%s/" % re.escape(os.path.dirname(os.__file__))
)
OTHER_SERVERS = (
    "aiohttp.run_app bottle.run cheroot.serve eventlet.run gevent.run gevent.serve_forever "
    "gunicorn.run hypercorn.run socketserver.serve_forever tornado.start uvicorn.run "
    "waitress.serve"
).split()
MAKES_SERVER = "wsgiref.make_server"  # perhaps of metrics
OTHER_APPS = "Other apps, like FastAPI's, need forward.py: see the README."
OTHER_SERVER = (
    "The model's script runs %s. If that serves a WSGI app, like those of Flask and Django, name "
    "it: WSGI_APP=module:attribute. " + OTHER_APPS
)
PATCHED_THREADS = (
    "The model's script patches Python's threads, as gevent does. It needs a server of its own and "
    "forward.py: see the README."
)
NO_APP = (
    "%s does not take (environ, start_response) as a WSGI app does. A factory is named with "
    "parentheses: WSGI_APP=app:create_app(). " + OTHER_APPS
)
# The model's signal handlers run in the main thread, which a signal does not wake if it goes to
# another thread or comes just before the wait.
SIGNAL_SECONDS = 0.5
DEFAULTS = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)
STOPS = (signal.SIGTERM, signal.SIGINT)
REQUESTS_SECONDS, EXIT_SECONDS = 8, 1.5  # of the 10 that `docker stop` waits


class Model:
    """The model's app: found by running its script as the image itself would, or by its name."""

    def __init__(self) -> None:
        self.app: Any = None
        self.error, self.script_has_ended = "", False
        self.settled = threading.Event()  # it is loaded, or has failed
        self.waiting_apps: List[Tuple[threading.Thread, WSGIApp]] = []

    def load(self, wsgi_app: str, arm_signals: Callable[[], None]) -> None:
        """In the main thread, as TensorFlow 1 needs it; does not return."""
        self.arm_signals = arm_signals
        self.replace_run_simple()
        command = sys.argv[1:] or ["app.py"]
        source = "WSGI_APP=" + wsgi_app if wsgi_app else "%s in %s" % (command[0], os.getcwd())
        try:
            if wsgi_app:
                sys.path.insert(0, os.getcwd())
                self.take(app_of(wsgi_app))
            else:
                self.run_script(command)
        except BaseException as error:
            log(traceback.format_exc())
            self.script_has_ended = True
            self.search_main_thread()
            if self.app is None:
                sentence = LOAD_FAILED % (source, type(error).__name__, error)
                trace = traceback.walk_tb(error.__traceback__)
                server = server_of((frame for frame, _ in trace), [*OTHER_SERVERS, MAKES_SERVER])
                # A server has found PORT taken.
                self.settle(None, OTHER_SERVER % server if server else sentence)
        self.stay(time.sleep)

    def run_script(self, command: List[str]) -> None:
        """A script and its arguments, as Python does; raises what the script raises, and
        RuntimeError at its end."""
        sys.argv[:] = command
        script = os.path.abspath(command[0])
        sys.path.insert(0, os.path.dirname(os.path.realpath(script)))
        with contextlib.suppress(ImportError):  # what Flask's run() prints is wrong here
            importlib.import_module("flask.cli").show_server_banner = lambda *_: None  # type: ignore
        loader = SourceFileLoader("__main__", script)
        main = types.ModuleType("__main__")
        main.__dict__.update(__file__=script, __loader__=loader, __builtins__=builtins)
        sys.modules["__main__"] = main  # as unpickling looks there, also when the script has ended
        try:
            exec(loader.source_to_code(loader.get_data(script), script), main.__dict__)
        except SystemExit as error:
            if error.code:
                raise
        self.script_has_ended = True
        for thread in iter(other_thread, None):  # each may start more
            thread.join(SIGNAL_SECONDS)
            self.arm_signals()
        raise RuntimeError("it ended without run(); name its app: WSGI_APP=module:attribute")

    def replace_run_simple(self) -> None:
        """So that a script, which calls it at its end, as Flask's run() does, calls `take`."""

        def run_simple(
            hostname: str,
            port: int,
            application: WSGIApp,
            *_: Any,
            threaded: bool = False,
            **__: Any,
        ) -> None:
            self.take(application, threaded)

        werkzeug.run_simple = serving.run_simple = run_simple

    def take(self, app: Any, threaded: bool = True) -> None:
        """Stands in for a server's run(); does not return either."""
        thread = threading.current_thread()
        idle: Callable[[float], Any] = time.sleep
        if not threaded:
            app = OneAtATime(app)
            idle = app.serve_one
        if thread is threading.main_thread():
            self.arm_signals()  # before anybody knows that it is loaded
            self.settle(app)
        else:
            self.waiting_apps.append((thread, app))
        self.stay(idle)

    def stay(self, idle: Callable[[float], Any]) -> None:
        """For ever, whatever a signal handler of the model raises."""
        is_main = threading.current_thread() is threading.main_thread()
        while True:
            with contextlib.suppress(BaseException):
                if is_main:
                    self.arm_signals()
                idle(SIGNAL_SECONDS)

    def settle(self, app: Any, error: str = "") -> None:
        self.app, self.error = app, error
        self.settled.set()

    def search_main_thread(self) -> None:
        """For a script that waits for the thread which runs the app, or runs another server."""
        if threading.main_thread().ident not in sys._current_frames():
            self.settle(None, PATCHED_THREADS)
            return
        frames = frames_of_main_thread()
        joined = [some.f_locals["self"] for some in frames if function_of(some) == "threading.join"]
        for thread, app in self.waiting_apps:
            if thread in joined or (self.script_has_ended and not thread.daemon):
                self.settle(app)
                return
        server = server_of(frames, OTHER_SERVERS)
        if server:
            self.settle(None, OTHER_SERVER % server)

    def is_settled(self) -> bool:
        """Whether it serves or has failed, as far as a look at the main thread tells."""
        if not self.settled.is_set():
            self.search_main_thread()
        return self.settled.is_set()

    def wait(self, deadline: str) -> str:
        """Until a second before the deadline (milliseconds since 1970); returns what went wrong."""
        end = int(deadline) / 1000 - 1 if deadline else sys.maxsize
        while not self.is_settled():
            left = end - time.time()
            if left <= 0:
                return TOO_SLOW % place_of_main_thread()
            self.settled.wait(min(left, LOOK_SECONDS))
        return self.error


def other_thread() -> Any:
    """A thread for which Python would wait before it ends; None if there is none."""
    threads = [some for some in threading.enumerate() if not some.daemon]
    return next((some for some in threads if some is not threading.main_thread()), None)


def frames_of_main_thread() -> List[Any]:
    """From the innermost one."""
    innermost = sys._current_frames()[threading.main_thread().ident or 0]
    return [frame for frame, _ in traceback.walk_stack(innermost)]


def function_of(frame: Any) -> str:
    """As it stands in OTHER_SERVERS."""
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    return "%s.%s" % (package, frame.f_code.co_name)


def server_of(frames: Iterable[Any], names: List[str]) -> str:
    """The package of the last of the frames with one of the names; empty if none has."""
    servers = [name for name in map(function_of, frames) if name in names]
    return servers[-1].partition(".")[0] if servers else ""


def place_of_main_thread() -> str:
    """The line of the model's own code which runs, not one of a library that it is in."""
    frames = frames_of_main_thread()
    own = [frame for frame in frames if not LIBRARY.match(frame.f_code.co_filename)]
    frame = (own or frames)[0]
    return "%s, line %d, %s" % (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def app_of(name: str) -> WSGIApp:
    """The WSGI app of module:attribute, or that a call of it makes, as for gunicorn.

    Raises TypeError with a sentence if it is none, and what its import or call raises.
    """
    module, _, text = name.partition(":")
    path, parenthesis, _ = text.partition("(")
    app: Any = operator.attrgetter(path)(importlib.import_module(module))
    if parenthesis:
        expression: Any = ast.parse(text, mode="eval").body
        arguments = map(ast.literal_eval, expression.args)
        app = app(*arguments, **{k.arg: ast.literal_eval(k.value) for k in expression.keywords})
    if not callable(app):
        raise TypeError("%s is not callable, as a WSGI app is" % text)
    if not takes_wsgi(app):
        raise TypeError(NO_APP % text)
    return app  # type: ignore[no-any-return]


def takes_wsgi(app: Any) -> bool:
    """Whether it can be called with two arguments, and is no function that needs none."""
    try:
        signature = inspect.signature(app)
        signature.bind({}, None)
    except TypeError:
        return False
    except ValueError:  # a builtin that does not say
        return True
    if inspect.iscoroutinefunction(app):
        return False
    return not inspect.isfunction(app) or any(
        some.default is some.empty and some.kind != some.VAR_KEYWORD
        for some in signature.parameters.values()
    )


# So that no signal comes between a fork and `Stop.forget`.
block = functools.partial(signal.pthread_sigmask, signal.SIG_BLOCK, STOPS)
unblock = functools.partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, STOPS)


class Stop:
    """Makes SIGTERM and SIGINT end the process with status 0, after the requests under way."""

    def __init__(self, server: serving.BaseWSGIServer) -> None:
        self.server = server
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        for number in STOPS:  # whatever this Python was started with
            signal.signal(number, self.handle)
        self.arm()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=self.forget)
        else:  # pragma: no cover, Python 3.6
            os.fork = functools.partial(fork_and_forget, os.fork, self.forget)
        threading.Thread(target=self.watch, daemon=True).start()

    def arm(self) -> None:
        """In the main thread, again and again: a model's event loop takes the signals."""
        signal.set_wakeup_fd(self.writer)  # comes even while the main thread loads a model in C
        for number in STOPS:
            if signal.getsignal(number) in DEFAULTS:
                signal.signal(number, self.handle)
        # No Event, whose lock a handler that raises could leave taken.
        self.main_has_passed = True

    def handle(self, number: int, _: Any) -> None:
        """For when an event loop has taken the wakeup descriptor."""
        os.write(self.writer, bytes([number]))

    def forget(self) -> None:  # pragma: no cover, where coverage is not taken along
        """In a process that the model forks, which is not this server."""
        signal.set_wakeup_fd(-1)
        for number in STOPS:
            if signal.getsignal(number) == self.handle:
                signal.signal(number, signal.SIG_DFL)
        for stream in (STDOUT, STDERR):
            stream.lock = threading.RLock()  # another thread may have had it
        unblock()

    def watch(self) -> None:
        """Waits for a signal, and ends the process."""
        number = 0
        while number not in STOPS:
            number = os.read(self.reader, 1)[0]
        last = time.monotonic() + REQUESTS_SECONDS
        self.main_has_passed = False
        self.finish_requests(last)
        has_handler = signal.getsignal(number) != self.handle  # the model's, in the main thread
        while has_handler and not self.main_has_passed and time.monotonic() < last:
            time.sleep(0.05)
        at_exit = threading.Thread(target=atexit._run_exitfuncs, daemon=True)  # not by _exit()
        at_exit.start()
        at_exit.join(max(EXIT_SECONDS, last - time.monotonic()))
        os._exit(0)  # pragma: no cover, as coverage has ended

    def finish_requests(self, last: float) -> None:
        """Takes no more of them, and waits for those under way."""
        self.server.shutdown()
        self.server.server_close()
        for thread in list(Handler.threads):
            thread.join(max(0, last - time.monotonic()))


def fork_and_forget(  # pragma: no cover, Python 3.6
    fork: Callable[[], int], forget: Callable[[], None]
) -> int:
    """As os.register_at_fork has it done."""
    block()
    pid = -1
    try:
        pid = fork()
    finally:
        if pid:
            unblock()
        else:
            forget()
    return pid


def listen(port: int, app: WSGIApp) -> serving.BaseWSGIServer:
    """Serves from now on, a thread for each request; exits with a sentence if it can't."""
    try:
        server = serving.make_server("0.0.0.0", port, app, threaded=True, request_handler=Handler)
    except OSError as error:  # pragma: no cover, before Werkzeug 2.2
        sys.exit("The PORT %d can't be listened on: %s." % (port, error))
    # Werkzeug's own serve_forever() takes no interval in old versions.
    threading.Thread(target=HTTPServer.serve_forever, args=(server, 0.1), daemon=True).start()
    return server


def main() -> None:
    """Listens at once, and loads the model meanwhile."""
    if sys.argv[1:] == ["--version"]:
        print(__version__)
        return
    settings = read_settings()
    sys.stdout = sys.__stdout__ = STDOUT.text  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = STDERR.text  # type: ignore[misc]
    model = Model()
    server = listen(int(settings["PORT"]), Proxy(model, settings))
    model.load(settings["WSGI_APP"], Stop(server).arm)


if __name__ == "__main__":
    main()
