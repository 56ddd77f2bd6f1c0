"""What an adapter takes of a request: openwhisk.py, those of AWS Lambda, and the obvious design.

    python benchmarks/peers.py [--turns N]

Takes the packages of `pip install apig-wsgi serverless-wsgi mangum a2wsgi`. Each has the same Flask
app in a process of its own, as on its platform, where no other keeps its code warm. They take turns
of TURN calls, from their platform's event as JSON to the answer as JSON. Prints a table of medians
in ms; no adapter can be faster than the WSGI call alone.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import importlib.metadata
import io
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from flask import Flask, Response, jsonify, request
from latency import ROOT, SIZES, message, multipart, table
from werkzeug.test import create_environ

try:
    import serverless_wsgi
    from a2wsgi import WSGIMiddleware
    from apig_wsgi import make_lambda_handler
    from mangum import Mangum
except ImportError as error:
    sys.exit(f"{error}: pip install apig-wsgi serverless-wsgi mangum a2wsgi")

sys.path.insert(0, str(ROOT))
import openwhisk

PACKAGES = ("flask", "werkzeug", "apig-wsgi", "serverless-wsgi", "mangum", "a2wsgi")
PATH = "/model/predict"
SETTINGS = {name: default for name, (default, _, _) in openwhisk.SETTINGS.items()}
IDS = ("action_version", "activation_id", "namespace", "transaction_id")
KIND = "multipart/form-data; boundary=B0UND"
AGENT, CLIENT = "curl/8.5.0", "192.0.2.1"
PROXY = {"x-forwarded-for": CLIENT, "x-forwarded-port": "443", "x-forwarded-proto": "https"}
HEADERS = {"host": "localhost", "user-agent": AGENT, "accept": "*/*", "content-type": KIND, **PROXY}
FEWER = {"1 MB": 5, "5 MB": 10}  # the turns are divided by these
TURN = 10  # calls
LIMIT = 1_048_576  # bytes of a result

Adapter = Callable[[bytes], bytes]
Call = Callable[[], bytes]

app = Flask(__name__)
client = app.test_client()


@app.post(PATH)
def predict() -> Response:
    return jsonify(length=len(request.files["image"].read()))


def activation(body: bytes) -> bytes:
    """POST /run's, with all the ids that OpenWhisk sends along."""
    made = json.loads(message("POST", PATH, body, KIND))
    made["value"]["__ow_headers"] = HEADERS
    made.update(dict.fromkeys(IDS, "0123456789abcdef"), deadline="1788000000000")
    return json.dumps(made).encode()


def api_gateway(body: bytes) -> bytes:
    """The event of an HTTP API, in its format 2.0, with all that it sends along:
    https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html
    """
    http = {"method": "POST", "path": PATH, "protocol": "HTTP/1.1", "sourceIp": CLIENT}
    context = {
        "accountId": "123456789012",
        "apiId": "0123456789",
        "domainName": "0123456789.execute-api.us-east-1.amazonaws.com",
        "domainPrefix": "0123456789",
        "http": {**http, "userAgent": AGENT},
        "requestId": "0123456789abcdef",
        "routeKey": "$default",
        "stage": "$default",
        "time": "29/Aug/2026:09:20:00 +0000",
        "timeEpoch": 1788000000000,
    }
    event: dict[str, Any] = {"version": "2.0", "routeKey": "$default", "isBase64Encoded": True}
    event.update(rawPath=PATH, rawQueryString="", requestContext=context)
    trace = "Root=1-6a92a480-0123456789abcdef01234567"
    event["headers"] = {**HEADERS, "content-length": str(len(body)), "x-amzn-trace-id": trace}
    event["body"] = base64.b64encode(body).decode()
    return json.dumps(event).encode()


def wsgi_call(body: bytes) -> Call:
    prepared = create_environ(PATH, method="POST", headers=HEADERS, data=body)

    def start_response(status: str, *_: Any) -> Any:
        if status != "200 OK":
            raise RuntimeError(f"the app answered with {status}")

    def call() -> bytes:
        answer: Any = app({**prepared, "wsgi.input": io.BytesIO(body)}, start_response)
        data = b"".join(answer)
        answer.close()
        return data

    return call


def own(data: bytes) -> bytes:
    environ = openwhisk.environ_of(openwhisk.parse(data)["value"], SETTINGS)
    return openwhisk.fit(openwhisk.call(app, environ), "", LIMIT)


def on_lambda(handler: Callable[[Any, Any], Any]) -> Adapter:
    return lambda data: json.dumps(handler(json.loads(data), None)).encode()


def obvious(data: bytes) -> bytes:
    value = json.loads(data)["value"]
    response = client.open(
        value["__ow_path"],
        method=value["__ow_method"],
        query_string=value["__ow_query"],
        headers=value["__ow_headers"],
        data=base64.b64decode(value["__ow_body"]),
    )
    answer = {"statusCode": response.status_code, "headers": dict(response.headers)}
    return json.dumps({**answer, "body": response.get_data(as_text=True)}).encode()


def calling(adapter: Adapter, event: Callable[[bytes], bytes]) -> Callable[[bytes], Call]:
    """What makes a call of an upload's body, by way of the platform's event."""
    return lambda body: partial(adapter, event(body))


def adapters() -> dict[str, Callable[[bytes], Call]]:
    """By name what makes a call of an upload's body."""
    asyncio.set_event_loop(asyncio.new_event_loop())  # for all of Mangum's calls
    wsgi: Any = app  # for their types of an app are not Flask's
    asgi: Any = WSGIMiddleware(wsgi)
    apig = make_lambda_handler(app, binary_support=True)
    return {
        "the WSGI call alone": wsgi_call,
        "openwhisk.py": calling(own, activation),
        "apig-wsgi": calling(on_lambda(apig), api_gateway),
        "serverless-wsgi": calling(
            on_lambda(partial(serverless_wsgi.handle_request, app)), api_gateway
        ),
        "Mangum with a2wsgi": calling(on_lambda(Mangum(asgi, lifespan="off")), api_gateway),
        "json, base64, Flask's test client": calling(obvious, activation),
    }


def check(name: str, data: bytes, size: int) -> None:
    """Raises RuntimeError unless it is the answer to an upload of this size."""
    answer = json.loads(data)
    body = json.loads(answer["body"]) if "body" in answer else answer
    if answer.get("statusCode", 200) != 200 or body != {"length": size}:
        raise RuntimeError(f"{name} answered {data[:200]!r}")


def serve(name: str, connection: Connection) -> None:
    """Answers each message, a size and a number of calls, with how long each call took, in s."""
    call_of = adapters()[name]
    calls: dict[int, Call] = {}
    for size, count in iter(connection.recv, None):
        if size not in calls:
            calls[size] = call_of(multipart(size))
            check(name, calls[size](), size)
        connection.send([seconds_of(calls[size]) for _ in range(count)])


def seconds_of(call: Call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(turns: int) -> dict[str, list[float]]:
    """Of each adapter, the median in ms for each of SIZES.

    Of the second half of its turns: before that Python still adapts its bytecode.
    """
    context = multiprocessing.get_context("spawn")
    connections = {name: context.Pipe() for name in adapters()}
    for name, (_, theirs) in connections.items():
        context.Process(target=serve, args=(name, theirs), daemon=True).start()
        theirs.close()  # so that the end of the process is one of the pipe
    figures: dict[str, list[float]] = {name: [] for name in connections}
    for size_name, size in SIZES.items():
        count = max(2, turns // FEWER.get(size_name, 1))
        seconds: dict[str, list[float]] = {name: [] for name in connections}
        for turn in range(count):
            for name, (ours, _) in connections.items():
                ours.send((size, TURN))
                some = ours.recv()
                if turn >= count // 2:
                    seconds[name] += some
        for name, all_of_them in seconds.items():
            figures[name].append(1000 * statistics.median(all_of_them))
    for ours, _ in connections.values():
        ours.send(None)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    text = "of 1 kB and of 100 kB; a fifth of 1 MB, a tenth of 5 MB (default: %(default)s)"
    parser.add_argument("--turns", type=int, default=200, help=text)
    figures = measure(parser.parse_args().turns)
    rows = [
        [name, *(f"{figure:#.3g}".rstrip(".") for figure in of_it)]
        for name, of_it in figures.items()
    ]
    versions = [f"{package} {importlib.metadata.version(package)}" for package in PACKAGES]
    print(f"Python {platform.python_version()}, {', '.join(versions)}\n")
    print(table(["ms", *SIZES], rows))


if __name__ == "__main__":
    main()
