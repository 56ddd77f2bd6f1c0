"""A plain Flask app whose app.py runs it, with what can go wrong in a model and what only a test
asks for."""

import io
import os
import subprocess
import sys
import threading
import time
from typing import Any

from flask import Flask, Response, jsonify, request

application = Flask(__name__)
together = threading.Barrier(4)


@application.route("/model/predict", methods=["POST"])
def predict() -> Any:
    parameters = request.get_json(force=True)
    if "error" in parameters:
        return jsonify(message="bad input"), 400
    if "text" in parameters:
        return "just text", 200, {"Content-Type": "text/plain"}
    if "list" in parameters:
        return jsonify([1, 2])
    if "nan" in parameters:
        return Response('{"a": NaN}', mimetype="application/json")
    return jsonify(seen=parameters)


@application.route("/model/metadata")
def metadata() -> Any:
    return jsonify(id="flask-app")


@application.route("/environment")
def environment() -> Any:
    return jsonify(
        {name: text for name, text in os.environ.items() if name.startswith(("__OW_", "SECRET"))}
    )


@application.route("/spawn")
def spawn() -> Any:
    """The environment that a child process gets."""
    return Response(subprocess.check_output(["env"]), mimetype="text/plain")


@application.route("/spawn-anew")
def spawn_anew() -> Any:
    """As after a with of unittest.mock.patch.dict(os.environ)."""
    variables = dict(os.environ)
    environment = subprocess.check_output(["env"])
    os.environ.clear()
    os.environ.update(variables)
    return Response(environment, mimetype="text/plain")


@application.route("/rewrap")
def rewrap() -> Any:
    """What models do that want another encoding; a buffer of its own holds the text back."""
    sys.stdout = io.TextIOWrapper(sys.stdout.buffer, "utf-8")
    print("rewrapped")
    return "rewrapped"


@application.route("/chatter/<int:count>")
def chatter(count: Any) -> Any:
    """Prints parts of lines after the answer, too."""

    def talk() -> None:
        for number in range(count):
            for stream in (sys.stdout, sys.stderr):
                print("part", end="\n" if number % 3 == 0 else "", file=stream)

    threading.Thread(target=talk).start()
    return "talking"


@application.route("/ids")
def ids() -> Any:
    return jsonify(
        {name: text for name, text in request.environ.items() if name.startswith("openwhisk.")}
    )


@application.route("/print/<text>")
def printing(text: Any) -> Any:
    print("out " + text, end=request.args.get("end", "\n"))
    print("err " + text, end=request.args.get("end", "\n"), file=sys.stderr)
    return "printed"


@application.route("/together/<name>")
def meet(name: Any) -> Any:
    """Answers when four are here at once."""
    together.wait(timeout=30)
    return jsonify(name=name, activation=request.environ["openwhisk.activation_id"])


@application.route("/exit")
def leave() -> Any:
    sys.exit("secret")


@application.route("/os-exit")
def die() -> Any:
    os._exit(7)


@application.route("/print-much")
def much() -> Any:
    for _ in range(10_000):
        print("x" * 999)
    return "printed"


@application.route("/upload", methods=["POST"])
def upload() -> Any:
    return str(len(request.files["image"].read()))


@application.route("/sleep/<float:seconds>")
def sleep(seconds: Any) -> Any:
    print("asleep", flush=True)
    time.sleep(seconds)
    return "awake"


@application.route("/bytes/<int:count>")
def count(count: Any) -> Any:
    kind = request.args.get("type", "application/octet-stream")
    return Response(
        b"7" * count if "random" not in request.args else os.urandom(count), content_type=kind
    )


@application.route("/fails-at-close")
def fails_at_close() -> Any:
    def clean_up() -> None:
        raise RuntimeError("secret")

    response = Response("whole")
    response.call_on_close(clean_up)
    return response


@application.route("/versioned", methods=["GET", "PUT"])
def versioned() -> Any:
    """Changes only what the caller has seen, by its strong ETag."""
    if request.method == "PUT":
        return "", 204 if request.if_match.contains("abc") else 412
    response = jsonify(["x"] * 1000)
    response.set_etag("abc")
    return response


@application.route("/header")
def header() -> Any:
    response = Response("x")
    response.headers.add("X-Good", "a")
    response.headers.add("X-Good", "b")
    response.headers["X-Bad Name"] = "1"
    return response


@application.route("/brotli")
def brotli() -> Any:
    return Response(b"no brotli", mimetype="text/html", headers={"Content-Encoding": "br"})


@application.route("/close-stdout")
def close() -> Any:
    sys.stdout.close()
    sys.stderr.close()
    return "closed"


class Raises:
    """Middleware that fails outside of Flask, where no error page comes to the rescue."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/raise":
            raise RuntimeError("secret")
        if environ["PATH_INFO"] == "/raise-late":
            start_response("200 OK", [])
            return iter_and_fail()
        if environ["PATH_INFO"] == "/endless":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return Endless()
        if environ["PATH_INFO"] == "/restart":
            start_response("200 OK", [("Content-Type", "text/plain")])(b"half a ")
            try:
                raise RuntimeError("secret")
            except RuntimeError:
                start_response("500 Error", [("Content-Type", "text/plain")], sys.exc_info())
            return [b"page"]
        if environ["PATH_INFO"] == "/write":
            start_response("200 OK", [("Content-Type", "text/plain")])(b"written, ")
            return [b"returned"]
        if environ["PATH_INFO"] in ("/status/99", "/status/700", "/status/2000"):
            start_response(environ["PATH_INFO"][8:] + " Odd", [("Content-Type", "text/plain")])
            return [b"odd"]
        if environ["PATH_INFO"] == "/split":
            start_response(
                "200 OK",
                [
                    ("Content-Type", "text/plain"),
                    ("X-Split", "a\r\nSet-Cookie: b"),
                    ("X Name", "c"),
                    ("X-Kept", "d"),
                ],
            )
            return [b"split"]
        return self.app(environ, start_response)


class Endless:
    def __iter__(self) -> Any:
        while True:
            yield b"x" * 65536

    def close(self) -> None:
        print("the endless answer is closed")


def iter_and_fail() -> Any:
    yield b"half"
    raise RuntimeError("secret")


application.wsgi_app = Raises(application.wsgi_app)  # type: ignore[method-assign]

print("loading")
application.run("0.0.0.0", port=5000, debug=True)
