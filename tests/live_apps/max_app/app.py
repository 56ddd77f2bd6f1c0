"""A MAX model's server with one of every API shape found in IBM/MAX-*: routes under /model, a web
app, plain pages."""

import io
import os
import struct
import sys
import tempfile
import zlib
from typing import Any

from config import API_DESC, API_TITLE, API_VERSION
from flask import Response, abort, jsonify, make_response, redirect, request, send_file, url_for
from maxfw.core import MAX_API, METADATA_SCHEMA, CustomMAXAPI, MAXApp, MetadataAPI, PredictAPI
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import BadRequest

try:  # first, as some images have both
    from flask_restplus import abort as abort_with
    from flask_restplus import fields, inputs
except ImportError:
    from flask_restx import abort as abort_with
    from flask_restx import fields, inputs

PNG = b"\x89PNG\r\n\x1a\n" + zlib.compress(bytes(range(256)) * 40)
WAV = b"RIFF" + struct.pack("<I", 8036) + b"WAVEfmt " + bytes(range(256)) * 31 + b"\0\xff"

parser = MAX_API.parser()
parser.add_argument("image", type=FileStorage, location="files", required=True, help="A picture")
parser.add_argument("threshold", type=float, default=0.7)
parser.add_argument("filter", action="split")
answer = MAX_API.model(
    "Answer", {"status": fields.String(required=True), "predictions": fields.List(fields.Raw)}
)


class Predict(PredictAPI):
    @MAX_API.expect(parser)
    @MAX_API.marshal_with(answer)
    def post(self) -> Any:
        """Image, number and list -> JSON"""
        arguments = parser.parse_args()
        image = arguments["image"]
        data = image.read()
        if image.mimetype not in ("image/png", "image/jpeg", "application/octet-stream"):
            abort(400, "Invalid file type/extension")
        return {
            "status": "ok",
            "predictions": [
                len(data),
                zlib.crc32(data),
                image.filename,
                image.mimetype,
                arguments["threshold"],
                arguments["filter"],
            ],
        }


class Metadata(MetadataAPI):
    @MAX_API.marshal_with(METADATA_SCHEMA)
    def get(self) -> Any:
        """What the model is"""
        return {
            "id": "shapes",
            "name": "é 大",
            "description": "d",
            "type": "t",
            "license": "l",
            "source": "s",
        }


class Labels(CustomMAXAPI):
    def get(self) -> Any:
        return {"count": 2, "labels": [{"id": "1", "name": "person"}, {"id": "2", "name": "vélo"}]}


class Image(CustomMAXAPI):
    def post(self) -> Any:
        """image -> image"""
        request.files["image"].read()
        return send_file(io.BytesIO(PNG), mimetype="image/png")


class Sound(CustomMAXAPI):
    def get(self) -> Any:
        """GET choice -> sound"""
        response = make_response(WAV)
        response.headers.set("Content-Type", "audio/wav")
        response.headers.set(
            "Content-Disposition", "attachment", filename=request.args.get("model", "up") + ".wav"
        )
        return response


text_parser = MAX_API.parser()
text_parser.add_argument("first_word", type=str, required=True)
text_parser.add_argument("second_word", type=str)
text_parser.add_argument("theta", type=int, default=1)


class Words(CustomMAXAPI):
    @MAX_API.expect(text_parser)
    def post(self) -> Any:
        """Query, form or JSON -> JSON"""
        arguments = text_parser.parse_args()
        return {
            "status": "ok",
            "words": [arguments["first_word"], arguments["second_word"]],
            "theta": arguments["theta"],
        }


sentence = MAX_API.model("Sentence", {"text": fields.List(fields.String, required=True)})


class Text(CustomMAXAPI):
    @MAX_API.expect(sentence, validate=True)
    def post(self) -> Any:
        """JSON -> JSON, with a schema"""
        return {
            "status": "ok",
            "predictions": [{text: len(text)} for text in MAX_API.payload["text"]],
        }


class Error(CustomMAXAPI):
    def post(self) -> Any:
        """Errors in the models' ways: data of an exception, keywords of abort, a failure inside"""
        how = request.args["how"]
        if how == "data":
            error = BadRequest()
            error.data = {"status": "error", "message": "Not a WAV: é"}  # type: ignore[attr-defined]
            raise error
        if how == "keywords":
            abort_with(
                400, errors="first_word, second_word", message="The input format is not valid."
            )
        if how == "inference":
            abort(500, "Model Inference Failed with valid input")
        raise ValueError("secret")


article = MAX_API.model(
    "Article", {"context": fields.String(required=True), "questions": fields.List(fields.String)}
)
articles = MAX_API.model(
    "Articles", {"paragraphs": fields.List(fields.Nested(article), required=True)}
)


class Nested(CustomMAXAPI):
    @MAX_API.expect(articles, validate=True)
    def post(self) -> Any:
        """JSON in JSON -> a list"""
        return [len(paragraph["context"]) for paragraph in MAX_API.payload["paragraphs"]]


choice_parser = MAX_API.parser()
choice_parser.add_argument("image", type=FileStorage, location="files", required=True)
choice_parser.add_argument("model", type=str, default="mosaic", choices=["mosaic", "udnie"])
choice_parser.add_argument("num_results", type=inputs.positive, default=5)


class Choice(CustomMAXAPI):
    def post(self) -> Any:
        """A file that is saved by its name, a choice, a positive number -> JPEG"""
        arguments = choice_parser.parse_args()
        path = os.path.join(tempfile.mkdtemp(), arguments["image"].filename)
        arguments["image"].save(path)
        with open(path, "rb") as file:
            lines = sum(1 for _ in file)
        os.remove(path)
        response = send_file(io.BytesIO(PNG), mimetype="image/jpeg")
        response.headers["X-Seen"] = " ".join(
            [str(lines), arguments["model"], str(arguments["num_results"])]
        )
        return response


measures = MAX_API.model(
    "Measures", {"a": fields.Fixed(decimals=2), "b": fields.List(fields.Integer), "c": fields.Float}
)


class Measures(CustomMAXAPI):
    @MAX_API.marshal_with(measures)
    def get(self) -> Any:
        """Numbers, marshalled, one of them none"""
        return {"a": 1.239, "b": [1, 2], "c": float("nan"), "left_out": 1}


max_app = MAXApp(API_TITLE, API_DESC, API_VERSION)
for api, route in (
    (Predict, "/predict"),
    (Metadata, "/metadata"),
    (Labels, "/labels"),
    (Image, "/image"),
    (Sound, "/sound"),
    (Words, "/words"),
    (Text, "/text"),
    (Error, "/error"),
    (Nested, "/nested"),
    (Choice, "/choice"),
    (Measures, "/measures"),
):
    max_app.add_api(api, route)
max_app.mount_static("/app/")
app = max_app.app


@app.route("/bytes/<int:count>", methods=["GET", "POST"])
def count_bytes(count: Any) -> Any:
    """Takes all that comes, answers as much as the path says."""
    request.get_data()
    return Response(bytes(range(256)) * (count // 256), mimetype="application/octet-stream")


@app.route("/cookies")
def cookies() -> Any:
    response = jsonify(request.cookies)
    response.set_cookie("a", "1")
    response.set_cookie("b", "2", httponly=True)
    response.set_cookie("c", "3", path=request.args.get("path", request.script_root + "/model"))
    return response


@app.route("/redirect")
def redirected() -> Any:
    return redirect(request.args.get("to") or url_for("range_of_bytes", part=1))


@app.route("/range")
def range_of_bytes() -> Any:
    return send_file(io.BytesIO(WAV), mimetype="application/x-hdf5", conditional=True)


@app.route("/etag")
def etag() -> Any:
    response = Response(
        "cached" * int(request.args.get("times", 1)),
        mimetype=request.args.get("type", "text/plain"),
    )
    response.set_etag("abc")
    return response.make_conditional(request)


@app.route("/status/<int:code>", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
def status(code: Any) -> Any:
    return ("", code) if code in (204, 304) else (jsonify(code=code), code)


@app.route("/type", methods=["GET", "POST"])
def typed() -> Any:
    """The body and the Content-Type that the query asks for."""
    return Response(bytes.fromhex(request.args["hex"]), content_type=request.args["type"])


@app.route("/stream")
def stream() -> Any:
    return Response((b"line %d\n" % number for number in range(9)), mimetype="text/plain")


@app.route("/encoded")
def encoded() -> Any:
    gzip = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = gzip.compress(b"packed " * 99) + gzip.flush()
    return Response(body, content_type=request.args["type"], headers={"Content-Encoding": "gzip"})


@app.route("/caller")
def caller() -> Any:
    return jsonify(address=request.remote_addr, url=request.url)


@app.route("/seen/<path:path>", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
def seen(path: Any) -> Any:
    return jsonify(
        path=path,
        query=request.query_string.decode(),
        method=request.method,
        type=request.content_type,
        body=request.get_data().hex(),
        agent=request.headers.get("User-Agent"),
        one=request.headers.get("X-One"),
        form=request.form.to_dict(False),
        args=request.args.to_dict(False),
    )


@app.route("/raise")
def fail() -> Any:
    print("about to fail", file=sys.stderr)
    raise RuntimeError("secret")


max_app.run() if "--port" not in sys.argv else app.run("127.0.0.1", int(sys.argv[2]), threaded=True)
