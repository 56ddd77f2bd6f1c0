"""A plain Flask app whose app.py runs it, with what can go wrong in a model and what only a test
asks for."""

import os
import sys
import time
from typing import Any

from flask import Flask, Response, jsonify, request

application = Flask(__name__)


@application.route("/model/predict", methods=["POST"])
def predict() -> Any:
    parameters = request.get_json(force=True)
    if "nan" in parameters:
        return Response('{"a": NaN}', mimetype="application/json")
    return jsonify(seen=parameters)


@application.route("/model/metadata")
def metadata() -> Any:
    return jsonify(id="flask-app")


@application.route("/exit")
def leave() -> Any:
    sys.exit("secret")


@application.route("/os-exit")
def die() -> Any:
    os._exit(7)


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
    return Response(b"7" * count, mimetype="application/octet-stream")


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
        return self.app(environ, start_response)


def iter_and_fail() -> Any:
    yield b"half"
    raise RuntimeError("secret")


application.wsgi_app = Raises(application.wsgi_app)  # type: ignore[method-assign]

print("loading")
application.run("0.0.0.0", port=5000, debug=True)
