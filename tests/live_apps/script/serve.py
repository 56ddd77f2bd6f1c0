"""A Flask app whose model is loaded if it is run as a script, and by what its arguments say."""

import argparse
from typing import Any

import beside
from flask import Flask, jsonify

app = Flask(__name__)
model = ""


@app.route("/")
def name() -> Any:
    return jsonify(model=model, debug=app.debug)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=beside.DEFAULT)
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    model = options.model
    app.run(port=options.port, debug=True)
