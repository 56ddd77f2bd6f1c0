"""Serves a model's HTTP API as an Apache OpenWhisk web action: POST /init, POST /run, a WSGI call, a result.

Any other request to the port is the model's own HTTP, so the same image serves without OpenWhisk too. What OpenWhisk
sends and takes is recorded in tests/recordings. Runs on Python 3.6 and newer, with the Werkzeug of the model's image.
"""
import base64
import binascii
import contextlib
import importlib
import io
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
from typing import Any, Callable, Dict, Iterable, List, Optional, Set, Tuple
from urllib.parse import quote, unquote_to_bytes, urlencode

from werkzeug.datastructures import Headers
from werkzeug.http import parse_accept_header
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server
from werkzeug.wsgi import get_input_stream

SENTINEL = b"XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX\n"  # ends an activation's log, on stdout and on stderr
STOP_SECONDS = 8  # of the 10 that `docker stop` waits
NOT_LOADED = "The model is not loaded; the log says more."
TOO_LARGE = ("The answer takes %d bytes as a result and OpenWhisk's limit is %d: ask for less of it or for gzip "
             "(curl --compressed), or raise the limit of the cluster and, to match it, RESULT_LIMIT.")
IDS = ("action_name", "action_version", "activation_id", "api_key", "deadline", "namespace", "transaction_id")
RESERVED = {"__ow_" + name for name in ("method", "headers", "path", "user", "query", "body")}
CONTROLLERS = {"connection", "content-length", "date", "server", "transfer-encoding"}  # headers it sets itself

# What the controller carries as text (tests/recordings/text_media_types.json); all else is base64. A charset makes
# other types text too, but not those that its HTTP library knows as binary (Pekko HTTP's MediaType.scala).
TEXT = {main + "/" + sub for main, subs in {"application": """atom+xml base64 javascript json json-patch+json xml-dtd xml
    merge-patch+json problem+json problem+xml rss+xml soap+xml vnd.api+json vnd.google-earth.kml+xml x-latex x-vrml
    x-www-form-urlencoded xhtml+xml""", "text": """asp cache-manifest calendar css csv event-stream html markdown mcf
    plain richtext tab-separated-values uri-list vnd.wap.wml vnd.wap.wmlscript x-asm x-c x-component x-h x-java-source
    x-pascal x-script x-scriptcsh x-scriptelisp x-scriptksh x-scriptlisp x-scriptperl x-scriptperl-module x-scriptphyton
    x-scriptrexx x-scriptscheme x-scriptsh x-scripttcl x-scripttcsh x-scriptzsh x-server-parsed-html x-setext x-sgml
    x-speech x-uuencode x-vcalendar x-vcard xml"""}.items() for sub in subs.split()}
BINARY = re.compile(r"(?!text/|application/)|application/(cbor|gnutar|java-archive|grpc|lha|lzx|msword|octet-stream|pdf"
                    r"|postscript|zip|vnd\.(google-earth|ms-|oasis|openxml)|x-(.*compress|apple|bzip|chrome|debian|dvi"
                    r"|font|gtar|gzip|redhat|shockwave|tar|tex|x509|xpinstall))")
JSON = re.compile(r"application/json$|.*\+json$")  # text that may be base64 as well, and is whenever it looks like it
LOOKS_BASE64 = re.compile(r"[\0- ]*([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?[\0- ]*\Z")
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # https://www.rfc-editor.org/rfc/rfc9110#name-tokens
HEADER = re.compile(TOKEN + r":[\t -~\x80-\xff]*\Z")
CONTENT_TYPE = re.compile(r'\s*({0}/{0})((?:\s*;\s*{0}=(?:{0}|"(?:[^"\\]|\\.)*"))*)[\s;]*\Z'.format(TOKEN))
CHARSET = re.compile(r";\s*charset=[\"']?([^\"';\s]+)", re.IGNORECASE)
Record, WSGIApp = Dict[str, Any], Callable[..., Iterable[bytes]]
Response = Tuple[int, List[Tuple[str, str]], bytes]  # status, headers, body


def media_type(content_type: str) -> Tuple[str, str]:
    """The type in lower case, and the charset; empty strings for what is absent or malformed."""
    found = CONTENT_TYPE.match(content_type)
    charset = CHARSET.search(found.group(2)) if found else None
    return found.group(1).lower() if found else "", charset.group(1) if charset else ""


def wsgi(text: str) -> str:
    """UTF-8 in the shape of WSGI's strings: https://peps.python.org/pep-3333/#unicode-issues."""
    return text.encode("utf-8", "replace").decode("latin-1")


def base_path(action_name: str) -> str:
    """The path of the web action's URL: of /guest/ocr /api/v1/web/guest/default/ocr; a package stands for default."""
    namespace, *package, name = action_name.strip("/").split("/")
    return quote("/".join(["/api/v1/web", namespace] + (package or ["default"]) + [name]))


def query_and_body(value: Record, content_type: str) -> Tuple[str, bytes]:
    """As the client sent them (--web raw), or one of the two made again from the parameters (--web true)."""
    kind, charset = media_type(content_type)
    query, body = value.get("__ow_query"), value.get("__ow_body", "")
    if query is None:
        parameters = {name: value[name] for name in value if name not in RESERVED}
        merged = "__ow_body" not in value and value["__ow_method"] not in ("get", "head")
        if JSON.match(kind) and ("__ow_body" in value or merged):
            return "" if merged else urlencode(parameters), json.dumps(parameters if merged else body).encode()
        if kind == "application/x-www-form-urlencoded" and merged:
            return "", urlencode(parameters).encode()
        query = urlencode(parameters)
    if kind != "application/json" and (kind in TEXT or charset):
        return query, body.encode("utf-8", "replace")
    data = binascii.a2b_base64(body)
    if len(body) != (len(data) + 2) // 3 * 4:
        raise ValueError("__ow_body is not base64")
    return query, data


def environ_of(message: Record, predict_path: str) -> Record:
    """The WSGI environ of a web action's POST /run (tests/recordings/requests.json); raises if that is malformed."""
    value = message["value"]
    headers, method = value.get("__ow_headers", {}), value["__ow_method"].upper()
    query, body = query_and_body(value, headers.get("content-type", ""))
    script = base_path(message.get("action_name") or os.environ.get("__OW_ACTION_NAME", "/guest/action"))
    path = value.get("__ow_path") or predict_path
    client, host, scheme = (headers.get("x-forwarded-" + of, "").split(",")[0].strip() for of in ("for", "host", "proto"))
    host, scheme = wsgi(host or headers.get("host") or "localhost"), "https" if scheme.lower() == "https" else "http"
    name, port = re.match(r"(.*?)(?::([0-9]+))?$", host).groups()  # type: ignore[union-attr]
    environ = {"HTTP_" + name.upper().replace("-", "_"): wsgi(headers[name])
               for name in sorted(headers, reverse=True)}  # of X-Name and X_Name the first wins
    environ.update(("openwhisk." + name, message[name]) for name in IDS if name in message)
    environ.update({
        "REQUEST_METHOD": method, "SCRIPT_NAME": unquote_to_bytes(script).decode("latin-1"), "QUERY_STRING": wsgi(query),
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"), "REQUEST_URI": wsgi(script + path + (query and "?" + query)),
        "CONTENT_TYPE": environ.pop("HTTP_CONTENT_TYPE", None), "HTTP_CONTENT_LENGTH": None,
        "CONTENT_LENGTH": str(len(body)) if body or method in ("POST", "PUT", "PATCH") else None,
        "HTTP_ACCEPT_ENCODING": None, "HTTP_HOST": host, "SERVER_NAME": name,  # it is the proxy that compresses
        "SERVER_PORT": port or {"http": "80", "https": "443"}[scheme], "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": wsgi(client or "127.0.0.1"), "REMOTE_USER": wsgi(value["__ow_user"]) if "__ow_user" in value else None,
        "wsgi.version": (1, 0), "wsgi.url_scheme": scheme, "wsgi.input": io.BytesIO(body), "wsgi.errors": sys.stderr,
        "wsgi.multithread": True, "wsgi.multiprocess": False, "wsgi.run_once": False})
    return {key: environ[key] for key in environ if environ[key] is not None}


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


def encode_body(headers: Headers, body: bytes) -> str:
    """Text or base64, as the controller expects it of the Content-Type, which changes where it can't carry the bytes."""
    kind, charset = media_type(headers.get("Content-Type", ""))
    encoded = "Content-Encoding" in headers
    if encoded and "javascript" in kind:
        kind, charset = "text/javascript", "binary"
    elif (kind in TEXT or charset and not BINARY.match(kind)) and not (encoded and JSON.match(kind)):
        try:
            text = (zlib.decompress(body, 47) if encoded else body).decode(charset or "utf-8")
            headers.remove("Content-Encoding")
            if not (JSON.match(kind) and LOOKS_BASE64.match(text)):
                return text
            body = text.encode()
        except (LookupError, UnicodeError, zlib.error):
            kind = kind if JSON.match(kind) else ""
    if charset or not kind:
        headers["Content-Type"] = kind or "application/octet-stream"
    return base64.b64encode(body).decode()


def result_of(response: Response, accept_encoding: str = "") -> Record:
    """The result that the controller turns into the app's response (tests/recordings/responses.json)."""
    status, headers, body = response[0], Headers(), response[2]
    for name, text in response[1]:
        if not HEADER.match(name + ":" + text):  # for one such header the controller would drop the connection
            print("The header %r is left out: HTTP does not allow it." % name, file=sys.stderr)
        elif name.lower() not in CONTROLLERS and (name.lower(), text) != ("access-control-allow-origin", "*"):
            headers.add(name, text)  # the controller allows any origin by itself; browsers don't take it twice
    if not 200 <= status <= 599:
        return failure(500, "The model answered with status %d, which OpenWhisk does not pass on." % status)
    if parse_accept_header(accept_encoding)["gzip"]:
        body = compress(headers, media_type(headers.get("Content-Type", ""))[0], body)
    text = encode_body(headers, body) if body and status not in (204, 205, 304) else ""
    fields = {name.lower(): (name, headers.getlist(name)) for name in headers.keys()}
    result = {"statusCode": status, "headers": {name: texts if len(texts) > 1 else texts[0] for name, texts in fields.values()},
              "body": text}
    return {"error": result} if status >= 500 else result


def plain_result(response: Response) -> Record:
    """The result of an invocation without HTTP: the JSON object that the model answers, or its error."""
    try:
        answer = json.loads(response[2].decode(), parse_constant=int)  # no NaN: that isn't JSON
    except ValueError:
        answer = None
    if response[0] >= 400:
        return {"error": answer or response[2].decode("utf-8", "replace")}
    return answer if isinstance(answer, dict) else result_of(response)


def serialize(result: Record, limit: int = 0) -> bytes:
    """As JSON; a result over the limit (bytes, 0: none) gives way to one that says so. Raises ValueError for NaN."""
    data = json.dumps(result, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
    return serialize(failure(500, TOO_LARGE % (len(data), limit))) if 0 < limit < len(data) else data


class Log(io.TextIOWrapper):
    """stdout or stderr, unbuffered; knows whether its last line is open, as a sentinel needs a line of its own."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.open_line = descriptor, False
        super().__init__(open(descriptor, "wb", 0, closefd=False), "utf-8", "backslashreplace", write_through=True)

    def write(self, text: str) -> int:
        self.open_line = not text.endswith("\n") if text else self.open_line
        return super().write(text)

    def end_activation(self) -> None:
        with contextlib.suppress(OSError):  # nor does it mind if the app has closed the stream
            os.write(self.descriptor, b"\n" * self.open_line + SENTINEL)
        self.open_line = False


class Handler(WSGIRequestHandler):
    """HTTP/1.1 with one request a connection, as in today's Werkzeug, and no access log."""

    protocol_version = "HTTP/1.1"
    threads: Set[threading.Thread] = set()  # with a request under way

    def run_wsgi(self) -> None:
        self.threads.add(threading.current_thread())
        try:
            super().run_wsgi()
        finally:
            self.threads.remove(threading.current_thread())

    def end_headers(self) -> None:
        if not self.close_connection:
            self.send_header("Connection", "close")
        super().end_headers()

    def handle_expect_100(self) -> bool:
        return True  # run_wsgi does it

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


class Proxy:
    """The WSGI app on the container's port: OpenWhisk's two endpoints, and for all else the model's own app."""

    app: Any = None
    load_error = ""

    def __init__(self, predict_path: str, result_limit: int, logs: List[Log]) -> None:
        self.predict_path, self.result_limit, self.logs, self.loaded = predict_path, result_limit, logs, threading.Event()

    def __call__(self, environ: Record, start_response: Callable[..., Any]) -> Iterable[bytes]:
        endpoint = environ["PATH_INFO"] if environ["REQUEST_METHOD"] == "POST" else ""
        headers = [("Content-Type", "application/json")]
        if endpoint in ("/init", "/run"):
            status, data = self.answer(endpoint, environ)
        elif self.app:
            return self.app(environ, start_response)  # type: ignore[no-any-return]
        else:
            status, data = "503 Service Unavailable", serialize({"error": NOT_LOADED})
            headers.append(("Retry-After", "1"))
        start_response(status, headers + [("Content-Length", str(len(data)))])
        return [data]

    def answer(self, endpoint: str, environ: Record) -> Tuple[str, bytes]:
        """A status and a JSON object, whatever arrives and whatever the app does, after the end of its log."""
        try:
            message = json.loads(get_input_stream(environ).read().decode())
            result = self.run(message) if endpoint == "/run" else self.init(message)
            data = serialize(result, self.result_limit)
        except BaseException:
            self.logs[1].write(traceback.format_exc())
            result = failure(500, "The request failed; the log says why.")
            data = serialize(result)
        status = "502 Bad Gateway" if endpoint == "/init" and "error" in result else "200 OK"
        for log in self.logs if endpoint == "/run" or "error" in result else []:
            log.end_activation()
        return status, data

    def init(self, message: Record) -> Record:
        """POST /init: takes over the environment, and waits for the model."""
        env = message["value"].get("env", {})
        os.environ.update({name: env[name] for name in env if name.startswith("__OW_")})
        error = self.wait(env.get("__OW_DEADLINE"))
        return {"error": error} if error else {"ok": True}

    def run(self, message: Record) -> Record:
        """POST /run: value -> environ -> app -> result."""
        try:
            value = message["value"]
            web = "__ow_method" in value
            if not web:
                value = dict(value, __ow_method="post", __ow_headers={"content-type": "application/json"})
            environ = environ_of(dict(message, value=value), self.predict_path)
            os.environ.update({"__OW_" + name.upper(): message[name] for name in IDS if name in message})
            error = self.wait(message.get("deadline"))
        except Exception as malformed:
            return failure(400, "OpenWhisk sends no such message: %s: %s." % (type(malformed).__name__, malformed))
        if error:
            return failure(503, NOT_LOADED)
        response = call(self.app, environ)
        if not web:
            return plain_result(response)
        status, headers, body = response
        browser = value["__ow_method"] == "get" and "text/html" in environ.get("HTTP_ACCEPT", "")
        if browser and not value.get("__ow_path") and status in (404, 405):
            return result_of((302, [("Location", quote(environ["SCRIPT_NAME"]) + "/")], b""))
        if value["__ow_method"] == "head":  # the controller counts the body for the Content-Length
            length = int(dict(headers).get("Content-Length") or 0)
            return result_of((status, headers, b" " * min(length, self.result_limit + 1 if self.result_limit else length)))
        return result_of(response, value.get("__ow_headers", {}).get("accept-encoding", ""))

    def wait(self, deadline: Any) -> str:
        """For the model, until a second before the deadline (milliseconds since 1970); returns what went wrong."""
        if self.loaded.wait(min(float(deadline) / 1000 - time.time() - 1, 3600) if deadline else None):
            return self.load_error
        return "The model did not load within the action's time limit; 'wsk action update --timeout' gives it longer."

    def load(self, wsgi_app: str) -> None:
        """Takes the app of module:attribute, or that which app.py runs; never returns, just as run() would not."""
        def take(app: WSGIApp, *_: Any, **options: Any) -> None:
            self.app = app
            self.loaded.set()
            threading.Event().wait()

        source = "WSGI_APP=" + wsgi_app if wsgi_app else "app.py in " + os.getcwd()
        sys.path.insert(0, os.getcwd())
        try:
            if wsgi_app:
                module, attribute = wsgi_app.split(":")
                take(getattr(importlib.import_module(module), attribute))
            importlib.import_module("flask").Flask.run = take  # MAXApp.run calls it
            runpy.run_path("app.py", run_name="__main__")
            raise RuntimeError("it ended without run(); for an app that another server runs, set WSGI_APP=module:attribute")
        except BaseException as error:
            self.logs[1].write(traceback.format_exc())
            self.load_error = "The model failed to load from %s: %s: %s" % (source, type(error).__name__, error)
        self.loaded.set()
        threading.Event().wait()


def stop_on_signals(server: BaseWSGIServer) -> None:
    """On SIGTERM and SIGINT: no new connections, the requests under way are finished, exit status 0."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)  # works even while the main thread loads a model in C
    stops = (signal.SIGTERM, signal.SIGINT)
    for number in stops:
        signal.signal(number, lambda *_: None)

    def watch() -> None:
        while os.read(reader, 1)[0] not in stops:
            pass
        server.shutdown()
        server.server_close()
        last = time.time() + STOP_SECONDS
        for thread in list(Handler.threads):
            thread.join(max(0, last - time.time()))
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def setting(name: str, default: str, valid: Callable[[str], Any], wanted: str) -> str:
    """An environment variable; exits with a sentence that names it if its value can't be used."""
    text = os.environ.get(name) or default
    return text if valid(text) else sys.exit("%s must be %s, not %r." % (name, wanted, text))


def main() -> None:
    number = re.compile(r"[0-9]{1,15}\Z").match
    port = int(setting("PORT", "8080", lambda text: number(text) and 0 < int(text) < 65536, "a port from 1 to 65535"))
    limit = int(setting("RESULT_LIMIT", "1048576", number, "a number of bytes, 0 for no limit"))
    predict_path = setting("PREDICT_PATH", "/model/predict", re.compile(r"/[!-~]*\Z").match, "a path that begins with /")
    wsgi_app = setting("WSGI_APP", "", re.compile(r"([\w.]+:\w+)?\Z").match, "module:attribute")
    logs = sys.stdout, sys.stderr = [Log(1), Log(2)]
    proxy = Proxy(predict_path, limit, logs)
    try:
        server = make_server("0.0.0.0", port, proxy, threaded=True, request_handler=Handler)
    except OSError as error:
        sys.exit("PORT %d can't be listened on: %s." % (port, error))
    stop_on_signals(server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy.load(wsgi_app)


if __name__ == "__main__":
    main()
