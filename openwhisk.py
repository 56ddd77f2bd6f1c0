"""Serves a model's HTTP API as an Apache OpenWhisk web action: POST /init, POST /run, a WSGI call, a result.

Any other request to the port is the model's own HTTP, so the same image serves without OpenWhisk too. What OpenWhisk
sends and takes is recorded in tests/recordings. Runs on Python 3.6 and newer, with the Werkzeug of the model's image.
"""
import binascii
import contextlib
import importlib
import io
import itertools
import json
import os
import re
import runpy
import signal
import sys
import threading
import time
import traceback
import zlib
from typing import Any, Callable, Dict, Iterable, List, Set, Tuple, Union
from urllib.parse import quote, unquote_to_bytes, urlencode

from werkzeug import serving
from werkzeug.datastructures import Headers
from werkzeug.http import parse_accept_header
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

try:  # OpenSSL's base64 takes a fifth of the time of Python's
    import _ssl
    import ctypes
    libcrypto: Any = ctypes.PyDLL(_ssl.__file__)
    DECODE, ENCODE = libcrypto.EVP_DecodeBlock, libcrypto.EVP_EncodeBlock
except (ImportError, AttributeError, OSError):  # pragma: no cover, a Python without a shared OpenSSL
    DECODE = ENCODE = None

SENTINEL = b"XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX\n"  # ends an activation's log, on stdout and on stderr
STOPS, STOP_SECONDS = (signal.SIGTERM, signal.SIGINT), 8  # of the 10 seconds that `docker stop` waits
NOT_LOADED = "The model is not loaded; the log says more."
IDS = ("action_name", "action_version", "activation_id", "api_key", "deadline", "namespace", "transaction_id")
RESERVED = {"__ow_" + name for name in ("method", "headers", "path", "user", "query", "body")}
# Headers that the controller sets itself; browsers don't take a second Access-Control-Allow-Origin.
CONTROLLERS = {"access-control-allow-origin", "connection", "content-length", "date", "server", "transfer-encoding"}
SETTINGS = {  # environment variables: default, pattern, meaning
    "PORT": ("8080", "(?!0|[7-9]....|6[6-9]...|65[6-9]..|655[4-9].|6553[6-9])[0-9]{1,5}", "a port from 1 to 65535"),
    "WSGI_APP": ("", r"([\w.]+:\w+)?", "module:attribute"),
    "PREDICT_PATH": ("/model/predict", "/[!-~]*", "a path that begins with /"),
    "RESULT_LIMIT": ("1048576", "[0-9]{1,15}", "a number of bytes, or 0 for no limit"),
}

# What the controller carries as text (tests/recordings/text_media_types.json); all else is base64. A charset makes
# other types text too, but not those that its HTTP library knows as binary (Pekko HTTP's MediaType.scala).
TEXT = {main + "/" + sub for main, subs in {"application": """atom+xml base64 javascript json json-patch+json xml-dtd
    xml merge-patch+json problem+json problem+xml rss+xml soap+xml vnd.api+json vnd.google-earth.kml+xml x-latex x-vrml
    x-www-form-urlencoded xhtml+xml""", "text": """asp cache-manifest calendar css csv event-stream html markdown mcf
    plain richtext tab-separated-values uri-list vnd.wap.wml vnd.wap.wmlscript x-asm x-c x-component x-h x-java-source
    x-pascal x-script x-scriptcsh x-scriptelisp x-scriptksh x-scriptlisp x-scriptperl x-scriptperl-module x-scriptphyton
    x-scriptrexx x-scriptscheme x-scriptsh x-scripttcl x-scripttcsh x-scriptzsh x-server-parsed-html x-setext x-sgml
    x-speech x-uuencode x-vcalendar x-vcard xml"""}.items() for sub in subs.split()}
BINARY = re.compile(r"(?!text/|application/)|application/(cbor|gnutar|java-archive|grpc|lha|lzx|msword|octet-stream"
                    r"|pdf|postscript|zip|vnd\.(google-earth|ms-|oasis|openxml)|x-(.*compress|apple|bzip|chrome|debian"
                    r"|dvi|font|gtar|gzip|redhat|shockwave|tar|tex|x509|xpinstall))")
JSON = re.compile(r"application/json$|.*\+json$")  # text that may be base64 as well, and is whenever it looks like it
LOOKS_BASE64 = re.compile(r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)\Z")
SPACES = "".join(map(chr, range(33)))  # which the controller ignores around base64
LONG_BODY, PLACEHOLDER = re.compile(rb'"__ow_body": ?"'), b"the body is " + os.urandom(16).hex().encode()
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # https://www.rfc-editor.org/rfc/rfc9110#name-tokens
HEADER = re.compile(TOKEN + r":[\t -~\x80-\xff]*\Z")
CONTENT_TYPE = re.compile(r'\s*({0}/{0})((?:\s*;\s*{0}=(?:{0}|"(?:[^"\\]|\\.)*"))*)[\s;]*\Z'.format(TOKEN))
CHARSET = re.compile(r";\s*charset=[\"']?([^\"';\s]+)", re.IGNORECASE)
Record = Dict[str, Any]
WSGIApp = Callable[..., Iterable[bytes]]
Response = Tuple[int, List[Tuple[str, str]], bytes]  # status, headers, body


def media_type(content_type: str) -> Tuple[str, str]:
    """The type in lower case, and the charset; empty strings for what is absent or malformed."""
    found = CONTENT_TYPE.match(content_type)
    charset = CHARSET.search(found.group(2)) if found else None
    return found.group(1).lower() if found else "", charset.group(1) if charset else ""


def base_path(message: Record) -> str:
    """The path of the web action's URL: /guest/ocr's is /api/v1/web/guest/default/ocr; a package stands for default."""
    action_name = message.get("action_name") or os.environ.get("__OW_ACTION_NAME", "/guest/action")
    namespace, *package, name = action_name.strip("/").split("/")
    return "/".join(["/api/v1/web", namespace] + (package or ["default"]) + [name])


def parse(data: bytes) -> Any:
    """The JSON. A long __ow_body of --web raw becomes a memoryview: its parsing would outweigh all else."""
    found = LONG_BODY.search(data) if len(data) > 65536 else None
    begin, end = (found.end(), data.find(b'"', found.end())) if found else (0, -1)
    if found and data.find(b"\\", begin, end) < 0:
        message = json.loads((data[:begin] + PLACEHOLDER + data[end:]).decode())
        value = message["value"]
        if value.get("__ow_body") == PLACEHOLDER.decode() and "__ow_query" in value:
            value["__ow_body"] = memoryview(data)[begin:end]
            return message
    return json.loads(data.decode())


def openssl(function: Any, data: bytes) -> bytes:
    """What EVP_DecodeBlock or EVP_EncodeBlock makes of it (man 3 EVP_EncodeBlock); empty if it is malformed."""
    buffer = bytearray(len(data) * 4 // 3 + 5)  # create_string_buffer() would leave a type for each size
    length = function(ctypes.byref(ctypes.c_char.from_buffer(buffer)), data, len(data))
    return bytes(memoryview(buffer)[:max(length, 0)])


def encode_base64(data: bytes) -> bytes:
    return openssl(ENCODE, data) if ENCODE else binascii.b2a_base64(data, newline=False)


def decode_base64(data: bytes) -> bytes:
    """Raises ValueError for anything but whole groups of four characters."""
    decoded = openssl(DECODE, data) if DECODE else binascii.a2b_base64(data)
    size, padding = len(data) // 4 * 3, len(data[-2:]) - len(data[-2:].rstrip(b"="))
    if len(data) % 4 or len(decoded) not in (size, size - padding) or data.find(b"=", 0, len(data) - padding) >= 0:
        raise ValueError("__ow_body is not base64")
    return decoded[:size - padding]


class Base64Input(io.RawIOBase):
    """A wsgi.input that decodes as the app reads: memory for all of it at once would cost more than the decoding.

    Reading raises ValueError where it is not base64, which OpenWhisk never sends.
    """

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
        data, self.rest = self.rest[:len(buffer)], self.rest[len(buffer):]
        buffer[:len(data)] = data
        return len(data)


def query_and_body(value: Record) -> Tuple[str, Union[bytes, Base64Input]]:
    """As the client sent them (--web raw), or one of the two made again from the parameters (--web true)."""
    kind, charset = media_type(value.get("__ow_headers", {}).get("content-type", ""))
    query, body = value.get("__ow_query"), value.get("__ow_body", "")
    if query is None:
        parameters = {name: value[name] for name in value if name not in RESERVED}
        merged = "__ow_body" not in value and value["__ow_method"] not in ("get", "head")
        if JSON.match(kind) and ("__ow_body" in value or merged):
            return "" if merged else urlencode(parameters), json.dumps(parameters if merged else body).encode()
        if kind == "application/x-www-form-urlencoded" and merged:
            return "", urlencode(parameters).encode()
        query = urlencode(parameters)
    text = kind != "application/json" and (kind in TEXT or charset)
    if isinstance(body, memoryview):
        return query, bytes(body) if text else Base64Input(body)
    data = body.encode("utf-8", "replace")
    return query, data if text else decode_base64(data)


def environ_of(message: Record, predict_path: str) -> Record:
    """The WSGI environ of a web action's POST /run (tests/recordings/requests.json); raises if that is malformed."""
    value = message["value"]
    headers, method = value.get("__ow_headers", {}), value["__ow_method"].upper()
    query, body = query_and_body(value)
    stream: Any = io.BytesIO(body) if isinstance(body, bytes) else io.BufferedReader(body, 65536)
    client, host, proto = (headers.get("x-forwarded-" + of, "").split(",")[0] for of in ("for", "host", "proto"))
    scheme, port = ("https", "443") if proto.lower() == "https" else ("http", "80")
    host, path = host or headers.get("host") or "localhost", value.get("__ow_path") or predict_path
    name, given_port = re.match(r"(.*?)(?::([0-9]+))?$", host).groups()  # type: ignore[union-attr]
    texts = {"HTTP_" + name.upper().replace("-", "_"): headers[name]
             for name in sorted(headers, reverse=True)}  # of X-A and X_A the first wins
    texts.update({
        "REQUEST_METHOD": method, "QUERY_STRING": query, "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": host,
        "SERVER_NAME": name, "SERVER_PORT": given_port or port, "REMOTE_ADDR": client or "127.0.0.1",
        "REMOTE_USER": value.get("__ow_user"), "CONTENT_TYPE": texts.pop("HTTP_CONTENT_TYPE", None),
        "CONTENT_LENGTH": str(len(body)) if body or method in ("POST", "PUT", "PATCH") else None,
        "HTTP_CONTENT_LENGTH": None, "HTTP_ACCEPT_ENCODING": None})  # compression is the proxy's business
    # WSGI's strings are bytes in the shape of latin-1: https://peps.python.org/pep-3333/#unicode-issues.
    environ = {key: texts[key].encode("utf-8", "replace").decode("latin-1") for key in texts if texts[key] is not None}
    environ.update(("openwhisk." + name, message[name]) for name in IDS if name in message)
    environ.update({
        "SCRIPT_NAME": base_path(message).encode().decode("latin-1"),
        "PATH_INFO": unquote_to_bytes(path if path.startswith("/") else "/" + path).decode("latin-1"),
        "wsgi.version": (1, 0), "wsgi.url_scheme": scheme, "wsgi.input": stream, "wsgi.errors": sys.stderr,
        "wsgi.multithread": True, "wsgi.multiprocess": False, "wsgi.run_once": False})
    return environ


def call(app: WSGIApp, environ: Record) -> Response:
    """The app's whole response; unlike werkzeug.test.run_wsgi_app with the app's write(), exc_info and odd headers."""
    started: List[Any] = []
    chunks: List[bytes] = []

    def start_response(status: str, headers: List[Tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        started[:] = int(status.split(None, 1)[0]), headers
        return chunks.append

    iterable = app(environ, start_response)
    try:
        chunks.extend(iterable)
    finally:
        getattr(iterable, "close", lambda: None)()
    return started[0], started[1], b"".join(chunks)


def failure(status: int, sentence: str) -> Record:
    """A result that the caller sees as this status with a JSON body, and that counts as a failed activation."""
    headers, body = {"Content-Type": "application/json"}, json.dumps({"error": sentence})
    return {"error": {"statusCode": status, "headers": headers, "body": body}}


def compress(headers: Headers, kind: str, body: bytes) -> bytes:
    """With gzip, where it pays and the controller can carry it."""
    carried = kind not in TEXT or JSON.match(kind) or "javascript" in kind
    if not carried or len(body) < 1000 or "Content-Encoding" in headers or "Content-Range" in headers \
            or len(zlib.compress(body[:16384], 1)) > 0.7 * len(body[:16384]):
        return body
    headers["Content-Encoding"] = "gzip"
    headers.add("Vary", "Accept-Encoding")
    if headers.get("ETag", "").startswith('"'):
        headers["ETag"] = "W/" + headers["ETag"]
    gzip = zlib.compressobj(6, zlib.DEFLATED, 31)
    return gzip.compress(body) + gzip.flush()


def encode_body(headers: Headers, body: bytes) -> Union[str, bytes]:
    """Text, or what must be base64: as the controller expects of the Content-Type; changes one that can't carry it."""
    kind, charset = media_type(headers.get("Content-Type", ""))
    encoded = "Content-Encoding" in headers
    if encoded and "javascript" in kind:
        kind, charset = "text/javascript", "binary"
    elif (kind in TEXT or charset and not BINARY.match(kind)) and not (encoded and JSON.match(kind)):
        try:
            text = (zlib.decompress(body, 47) if encoded and not body.isspace() else body).decode(charset or "utf-8")
            headers.remove("Content-Encoding")
            if not (JSON.match(kind) and LOOKS_BASE64.match(text.strip(SPACES))):
                return text
            body = text.encode()
        except (LookupError, UnicodeError, zlib.error):
            kind = kind if JSON.match(kind) else ""
    if charset or not kind:
        headers["Content-Type"] = kind or "application/octet-stream"
    return body


def result_of(response: Response, accept_encoding: str = "") -> Record:
    """The result that the controller turns into the app's response (tests/recordings/responses.json)."""
    status, pairs, body = response
    if not 200 <= status <= 599:
        return failure(500, "The model answered with status %d, which OpenWhisk does not pass on." % status)
    headers = Headers()
    for name, text in pairs:
        if not HEADER.match(name + ":" + text):  # for one such header the controller would drop the connection
            print("The header %r is left out: HTTP does not allow it." % name, file=sys.stderr)
        elif name.lower() not in CONTROLLERS:
            headers.add(name, text)
    if parse_accept_header(accept_encoding)["gzip"]:
        body = compress(headers, media_type(headers.get("Content-Type", ""))[0], body)
    content = encode_body(headers, body) if body and status not in (204, 205, 304) else ""
    lists = {name.lower(): (name, headers.getlist(name)) for name in headers.keys()}
    fields = {name: texts if len(texts) > 1 else texts[0] for name, texts in lists.values()}
    if status < 500:
        return {"statusCode": status, "headers": fields, "body": content}
    content = encode_base64(content).decode() if isinstance(content, bytes) else content
    return {"error": {"statusCode": status, "headers": fields, "body": content}}


def plain_result(response: Response) -> Record:
    """The result of an invocation without HTTP: the JSON object that the model answers, or its error."""
    try:
        answer = json.loads(response[2].decode(), parse_constant=int)  # no NaN: that isn't JSON
    except ValueError:
        answer = None
    if response[0] >= 400:
        return {"error": answer or response[2].decode("utf-8", "replace")}
    return answer if isinstance(answer, dict) else result_of(response)


def export(variables: Dict[str, str]) -> None:
    """Into os.environ, but past putenv: of what differs each time glibc's setenv keeps every value for ever."""
    environ: Any = os.environ
    environ._data.update((environ.encodekey(name), environ.encodevalue(variables[name])) for name in variables)


def serialize(result: Record, limit: int = 0) -> Tuple[int, Iterable[bytes]]:
    """The size and pieces of its JSON; over the limit (bytes, 0: none), of one that says so. ValueError for NaN."""
    body = result["body"] if isinstance(result.get("body"), bytes) else b""
    text = json.dumps(dict(result, body="") if body else result, ensure_ascii=False, allow_nan=False)
    data = text.encode("utf-8", "backslashreplace")
    size, step = len(data) + (len(body) + 2) // 3 * 4, 3 << 16
    if 0 < limit < size:
        return serialize(failure(500, (
            "The answer takes %d bytes as a result and OpenWhisk's limit is %d: ask for less of it or for gzip (curl "
            "--compressed), or raise the limit of the cluster and, to match it, RESULT_LIMIT.") % (size, limit)))
    if not body:
        return size, [data]
    parts = (encode_base64(body[at:at + step]) for at in range(0, len(body), step))
    return size, itertools.chain([data[:-2]], parts, [data[-2:]])  # the body comes last


class Log(io.TextIOWrapper):
    """stdout or stderr, unbuffered; knows whether its last line is open, as a sentinel needs a line of its own."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.open_line = descriptor, False
        raw: Any = open(descriptor, "wb", 0, closefd=False)
        super().__init__(raw, "utf-8", "backslashreplace", write_through=True)

    def write(self, text: str) -> int:
        self.open_line = not text.endswith("\n") if text else self.open_line
        return super().write(text)

    def put(self, lines: bytes) -> None:
        """On lines of their own, and past the stream, which the app may have closed."""
        with contextlib.suppress(OSError):
            os.write(self.descriptor, b"\n" * self.open_line + lines)
        self.open_line = False


class Handler(WSGIRequestHandler):
    """HTTP/1.1 with one request a connection, as in today's Werkzeug, and no access log."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds for which a client may neither send nor read
    threads: Set[threading.Thread] = set()  # with a request under way

    def run_wsgi(self) -> None:
        self.threads.add(threading.current_thread())
        try:
            super().run_wsgi()
        finally:
            self.threads.remove(threading.current_thread())

    def end_headers(self) -> None:
        if not self.close_connection:  # pragma: no cover, before Werkzeug 2.1
            self.send_header("Connection", "close")
        super().end_headers()

    def handle_expect_100(self) -> bool:
        return True  # run_wsgi does it

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


class Proxy:
    """The WSGI app on the container's port: OpenWhisk's two endpoints, and for all else the model's own app."""

    def __init__(self, predict_path: str, result_limit: int, logs: List[Log]) -> None:
        self.predict_path, self.result_limit, self.logs = predict_path, result_limit, logs
        self.app: Any = None
        self.load_error, self.loaded = "", threading.Event()

    def __call__(self, environ: Record, start_response: Callable[..., Any]) -> Iterable[bytes]:
        endpoint = environ["PATH_INFO"] if environ["REQUEST_METHOD"] == "POST" else ""
        headers = [("Content-Type", "application/json")]
        if endpoint in ("/init", "/run"):
            status, (size, pieces) = self.answer(endpoint, environ)
        elif self.app:
            return self.app(environ, start_response)  # type: ignore[no-any-return]
        else:
            status, (size, pieces) = "503 Service Unavailable", serialize({"error": NOT_LOADED})
            headers.append(("Retry-After", "1"))
        start_response(status, headers + [("Content-Length", str(size))])
        return pieces

    def answer(self, endpoint: str, environ: Record) -> Tuple[str, Tuple[int, Iterable[bytes]]]:
        """Status, and size and pieces of a JSON object, whatever arrives and whatever the app does; ends its log."""
        try:
            message = parse(environ["wsgi.input"].read(max(0, int(environ.get("CONTENT_LENGTH") or 0))))
            result = self.run(message) if endpoint == "/run" else self.init(message)
            serialized = serialize(result, self.result_limit)
        except BaseException:
            self.logs[1].put(traceback.format_exc().encode("utf-8", "replace"))
            result = failure(500, "The request failed; the log says why.")
            serialized = serialize(result)
        failed = "error" in result
        for log in self.logs if failed or endpoint == "/run" else []:
            log.put(SENTINEL)
        return "502 Bad Gateway" if failed and endpoint == "/init" else "200 OK", serialized

    def init(self, message: Record) -> Record:
        """Takes over the platform's part of the environment, and waits for the model."""
        env = message["value"].get("env", {})
        error = self.wait(env.get("__OW_DEADLINE"))
        os.environ.update({name: env[name] for name in env if name.startswith("__OW_")})
        return {"error": error} if error else {"ok": True}

    def run(self, message: Record) -> Record:
        """value -> environ -> app -> result."""
        try:
            value, plain = message["value"], "__ow_method" not in message["value"]
            if plain:
                value = dict(value, __ow_method="post", __ow_headers={"content-type": "application/json"})
            environ = environ_of(dict(message, value=value), self.predict_path)
            export({"__OW_" + name.upper(): message[name] for name in IDS if name in message})
            error = self.wait(message.get("deadline"))
        except Exception as malformed:
            return failure(400, "OpenWhisk sends no such message: %s: %s." % (type(malformed).__name__, malformed))
        if error:
            return failure(503, NOT_LOADED)
        status, headers, body = call(self.app, environ)
        if plain:
            return plain_result((status, headers, body))
        bare = value["__ow_method"] == "get" and not value.get("__ow_path")
        if bare and status in (404, 405) and "text/html" in environ.get("HTTP_ACCEPT", ""):
            return result_of((302, [("Location", quote(base_path(message)) + "/")], b""))
        coding = value.get("__ow_headers", {}).get("accept-encoding", "")
        if value["__ow_method"] == "head":  # the controller's Content-Length is the body's, which it then leaves out
            length, coding = int(Headers(headers).get("Content-Length", 0)), ""
            body = b" " * (min(length, self.result_limit + 1) if self.result_limit else length)
        return result_of((status, headers, body), coding)

    def wait(self, deadline: Any) -> str:
        """For the model, until a second before the deadline (milliseconds since 1970); returns what went wrong."""
        if self.loaded.wait(min(float(deadline) / 1000 - time.time() - 1, 3600) if deadline else None):
            return self.load_error
        return "The model did not load within the action's time limit; 'wsk action update --timeout' gives it longer."

    def load(self, wsgi_app: str) -> None:
        """Takes the app of module:attribute, or the one that app.py runs; like run() it does not return."""
        def take(app: Any, *_: Any, **options: Any) -> None:
            self.app = app
            if threading.current_thread() is threading.main_thread():
                self.loaded.set()
            threading.Event().wait()

        sys.path.insert(0, os.getcwd())
        try:
            if wsgi_app:
                module, attribute = wsgi_app.split(":")
                app = getattr(importlib.import_module(module), attribute)
                take(app if callable(app) else app())  # TypeError: object is not callable
            importlib.import_module("flask").Flask.run = take  # MAXApp.run calls it
            serving.run_simple = lambda host, port, app, *_, **options: take(app)
            runpy.run_path(os.path.abspath("app.py"), run_name="__main__")
            if not self.app:  # nor runs one in another thread
                raise RuntimeError("it ended without run(); for an app of another server set WSGI_APP=module:attribute")
        except BaseException as error:
            self.logs[1].put(traceback.format_exc().encode("utf-8", "replace"))
            source = "WSGI_APP=" + wsgi_app if wsgi_app else "app.py in " + os.getcwd()
            self.load_error = "The model failed to load from %s: %s: %s" % (source, type(error).__name__, error)
        take(self.app)


def stop_on_signals(server: BaseWSGIServer) -> None:
    """On SIGTERM and SIGINT: no new connections, the requests under way are finished, exit status 0."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)  # comes even while the main thread loads a model in C
    for number in STOPS:
        signal.signal(number, lambda *_: None)

    def forget(*_: Any) -> None:  # pragma: no cover, where coverage is not taken along
        """In a process that the model forks, which is not this server."""
        signal.set_wakeup_fd(-1)
        for number in STOPS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, STOPS), after_in_child=forget,
                            after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS))
    else:  # pragma: no cover, Python 3.6
        importlib.import_module("multiprocessing.util").register_after_fork(Handler, forget)

    def watch() -> None:
        while os.read(reader, 1)[0] not in STOPS:
            pass
        server.shutdown()
        server.server_close()
        last = time.time() + STOP_SECONDS
        for thread in list(Handler.threads):
            thread.join(max(0, last - time.time()))
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def read_settings() -> List[str]:
    """The environment variables of SETTINGS; exits with a sentence about the one that makes no sense."""
    texts = [os.environ.get(name) or default for name, (default, _, _) in SETTINGS.items()]
    for text, (name, (_, pattern, wanted)) in zip(texts, SETTINGS.items()):
        if not re.match(pattern + r"\Z", text):
            sys.exit("%s must be %s, not %r." % (name, wanted, text))
    return texts


def main() -> None:
    """Listens at once, and loads the model meanwhile in the main thread: TensorFlow 1 needs it there."""
    port, wsgi_app, predict_path, result_limit = read_settings()
    logs = sys.stdout, sys.stderr = [Log(1), Log(2)]
    proxy = Proxy(predict_path, int(result_limit), logs)
    try:
        server = make_server("0.0.0.0", int(port), proxy, threaded=True, request_handler=Handler)
    except OSError as error:  # pragma: no cover, before Werkzeug 2.2
        sys.exit("The PORT %s can't be listened on: %s." % (port, error))
    stop_on_signals(server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy.load(wsgi_app)


if __name__ == "__main__":
    main()
