"""A container that tells what OpenWhisk sent it, and answers what a test wants; no openwhisk.py.

GET /last/ACTIVATION_ID gives the message of that activation, POST /result answers with the result
that is its body; any other request is kept.
"""

import base64
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

messages: dict[str, Any] = {}


def result_of(message: Any) -> Any:
    path = message["value"].get("__ow_path", "")
    if not path.startswith("/last/"):
        messages[message["activation_id"]] = message
    if path == "/result":
        return json.loads(base64.b64decode(message["value"]["__ow_body"]))
    if path.startswith("/last/"):
        kept = messages.get(path.rpartition("/")[2])
        body = base64.b64encode(json.dumps(kept).encode()).decode()
        headers = {"content-type": "application/octet-stream"}
        return {"statusCode": 200 if kept else 404, "headers": headers, "body": body}
    return {}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        data = json.dumps(result_of(message) if self.path == "/run" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        if self.path == "/run":
            for stream in (sys.stdout, sys.stderr):
                print("XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX", file=stream, flush=True)

    def log_message(self, format: str, *args: Any) -> None:
        pass


port = int(sys.argv[1]) if sys.argv[1:] else 8080
ThreadingHTTPServer(("0.0.0.0", port), Handler).serve_forever()
