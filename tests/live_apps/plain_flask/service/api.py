"""A Flask app in a package, that something else would serve."""

from flask import Flask

app = Flask(__name__)


@app.route("/hello")
def hello() -> str:
    return "hello"
