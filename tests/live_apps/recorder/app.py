"""A bare WSGI app that answers with what it was asked, or with what it was asked to answer."""

import base64
import json
import os
import signal
from typing import Any
from wsgiref.validate import validator


def record(environ: Any, start_response: Any) -> Any:
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH", 0)))
    seen = {key: environ[key] for key in environ if isinstance(environ[key], str)}
    seen["body"] = base64.b64encode(body).decode()
    seen["os.environ"] = {key: os.environ[key] for key in os.environ if key.startswith("__OW_")}
    data = json.dumps(seen).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(data)))])
    return [data]


if "SIGNALS" in os.environ:
    signal.signal(signal.SIGUSR1, lambda *_: print("SIGUSR1"))

app = validator(record)
