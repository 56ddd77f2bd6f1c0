"""A bare WSGI app that answers with what it was asked, or with what the query's `answer` asks for,
or at /model/predict its `predicted`."""

import base64
import json
from typing import Any
from urllib.parse import parse_qs
from wsgiref.validate import validator


def record(environ: Any, start_response: Any) -> Any:
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    query = parse_qs(environ["QUERY_STRING"])
    wanted = query.get("answer")
    if environ["PATH_INFO"] == "/model/predict":
        wanted = query.get("predicted", wanted)
    if wanted:
        answer = json.loads(wanted[0])
        start_response(
            str(answer["status"]) + " Answered", [(name, text) for name, text in answer["headers"]]
        )
        return [base64.b64decode(answer["body"])]
    seen = {key: environ[key] for key in environ if isinstance(environ[key], str)}
    seen["body"] = base64.b64encode(body).decode()
    data = json.dumps(seen).encode()
    start_response(
        "200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(data)))]
    )
    return [data]


app = validator(record)
