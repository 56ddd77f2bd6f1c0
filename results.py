"""The answer of an activation that took longer than a caller may wait, as an OpenWhisk action.

OpenWhisk lets a caller wait for a minute, then says 202 and keeps the answer, for the owner of the
action. This web action reads it for the callers of one model's action, whose name is bound to it:
GET …/max-ocr-results/<activation id>. A POST to it calls the model without waiting at all, and says
under which id the answer will be. `RESULTS=1 ./deploy.sh` makes it. Runs on Python 3.6 and newer,
with the standard library.
"""

import base64
import json
import os
import re
import ssl
import urllib.error
import urllib.request
from typing import Any, Dict, Optional

Record = Dict[str, Any]

API_SECONDS = 20  # for which the API may be silent
RETRY_SECONDS = 5  # after which a caller is to ask again; OpenWhisk takes 60 calls a minute
CORS = {"access-control-allow-" + name for name in ("origin", "methods", "headers")}
BOUND = ("MODEL", "INSECURE")
MALFORMED = (
    "Which activation? GET …/%s-results/ID, with the ID that the header X-OpenWhisk-Activation-Id "
    "of the model's answer had: 32 hexadecimal digits."
)
NOT_YET = (
    "There is no answer under this id by now: the model still works on it, or there never was such "
    "an activation of it. Ask again."
)
OF_RESULTS = (
    "This is the id of a call of %s-results itself: the one of the model is in the body of that "
    "call's answer."
)
REFUSED = {
    413: "The request is too large for a call that does not wait: send it to the model itself.",
    429: "OpenWhisk takes no more calls in this minute: ask again later.",
}
NO_JSON = "The id comes as JSON, which this call's Accept leaves out; the model was not called."


class ApiError(Exception):
    """OpenWhisk's API does not tell; the text is a sentence for the caller."""

    def __init__(self, text: str, status: int = 502) -> None:
        super().__init__(text)
        self.status = status


def main(args: Record) -> Record:
    """The web action, --web raw, so that the model gets a caller's own request, and no caller sets
    a parameter. Returns what the caller is to see, never raises.

    Its bound parameters: MODEL, the name of the model's action, in the same package; INSECURE, for
    an API whose certificate nobody vouches for. What the API answers is recorded in
    tests/recordings/activations.json.
    """
    method, path = args.get("__ow_method", "get"), args.get("__ow_path", "")
    insecure = bool(args.get("INSECURE"))
    accept = args.get("__ow_headers", {}).get("accept", "*/*")
    takes_json = any(kind in accept for kind in ("*/*", "application/*", "json"))
    try:
        if method not in ("get", "head"):
            return accepted(invoke(args, insecure)) if takes_json else sentence(406, NO_JSON)
        if not re.match(r"/[0-9a-f]{32}\Z", path):
            return sentence(400, MALFORMED % args["MODEL"])
        record = ask("activations/" + path[1:], insecure)
    except ApiError as error:
        return sentence(error.status, str(error))
    if action_of(record) == os.environ["__OW_ACTION_NAME"].strip("/"):
        return sentence(400, OF_RESULTS % args["MODEL"])
    if action_of(record) == model_action(args["MODEL"]):
        return answer_of(record)
    not_yet = sentence(202, NOT_YET, **{"Retry-After": str(RETRY_SECONDS)})
    return not_yet if takes_json else dict(not_yet, body="")  # else the controller's 406


def model_action(name: str) -> str:
    """The model's action, with namespace and package: those of this one."""
    return os.environ["__OW_ACTION_NAME"].strip("/").rpartition("/")[0] + "/" + name


def action_of(record: Record) -> str:
    for annotation in record.get("annotations", []):
        if annotation.get("key") == "path":
            return str(annotation.get("value"))
    return ""


def invoke(args: Record, insecure: bool) -> Record:
    """Calls the model with this request, and does not wait; raises ApiError."""
    _, _, action = model_action(args["MODEL"]).partition("/")  # in the key's own namespace
    parameters = {name: args[name] for name in args if name not in BOUND}
    data = json.dumps(parameters, ensure_ascii=False)  # the API takes so many bytes of it
    body = data.encode("utf-8", "backslashreplace")  # a lone surrogate becomes JSON's escape
    return ask("actions/" + action + "?blocking=false", insecure, body)


def ask(path: str, insecure: bool, data: Optional[bytes] = None) -> Record:
    """What OpenWhisk's API answers to a GET, or to a POST of the data; empty for what it has not
    got. Raises ApiError."""
    host = os.environ.get("__OW_API_HOST", "")
    url = (host if "://" in host else "https://" + host) + "/api/v1/namespaces/_/" + path
    key = base64.b64encode(os.environ.get("__OW_API_KEY", "").encode()).decode()
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),  # none, whatever http_proxy says: it would see the key
        urllib.request.HTTPSHandler(context=context),
    )
    try:
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        request.add_unredirected_header("Authorization", "Basic " + key)  # nowhere else
        with opener.open(request, timeout=API_SECONDS) as response:
            answer = json.loads(response.read().decode())
    except urllib.error.HTTPError as error:
        if error.code == 404 and data is None:
            return {}
        if error.code in REFUSED:
            raise ApiError(REFUSED[error.code], error.code) from None
        raise ApiError("OpenWhisk's API answered with status %d." % error.code) from None
    except Exception as error:
        print("%s: %s" % (url, error))  # into the log, for the owner
        raise ApiError("OpenWhisk's API can't be asked at the moment.") from None
    if not isinstance(answer, dict) or "activationId" not in answer:
        raise ApiError("OpenWhisk's API answered with something else than a record.")
    return answer


def accepted(answer: Record) -> Record:
    """The id under which the answer of a call will be."""
    headers = {"Content-Type": "application/json", "Retry-After": str(RETRY_SECONDS)}
    body = json.dumps({"activationId": answer["activationId"]})
    return {"statusCode": 202, "headers": headers, "body": body}


def answer_of(record: Record) -> Record:
    """The model's own answer, or what OpenWhisk says of an activation that has none."""
    response = record.get("response")
    result = response.get("result") if isinstance(response, dict) else None
    if isinstance(result, dict) and isinstance(result.get("error"), dict):
        result = result["error"]  # of an answer with a status from 500 on
    if isinstance(result, dict) and "statusCode" in result:
        return without_cors(result)
    error = result.get("error") if isinstance(result, dict) else None
    return sentence(502, str(error or "The activation ended without an answer.")[:1000])


def without_cors(result: Record) -> Record:
    """Without what the controller adds to this action's answers: browsers take it only once."""
    headers = result.get("headers")
    if not isinstance(headers, dict):
        return result
    kept = {name: headers[name] for name in headers if name.lower() not in CORS}
    return dict(result, headers=kept)


def sentence(status: int, text: str, **headers: str) -> Record:
    headers.update({"Content-Type": "application/json", "Cache-Control": "no-store"})
    return {"statusCode": status, "headers": headers, "body": json.dumps({"error": text})}
