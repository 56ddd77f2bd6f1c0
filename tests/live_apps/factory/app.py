"""A model in the shape of Presidio's: a factory that gunicorn calls, JSON to POST /analyze."""

from typing import Any

from flask import Flask, jsonify, request


def create_app(language: str = "en", threshold: float = 0.5) -> Flask:
    app = Flask(__name__)

    @app.route("/health")
    def health() -> str:
        return "ok"

    @app.route("/analyze", methods=["POST"])
    def analyze() -> Any:
        asked = request.get_json()
        return jsonify(text=asked["text"], language=language, threshold=threshold)

    return app


def needs_a_name(name: str) -> Flask:
    return create_app(name)


def makes_nothing() -> None:
    pass


def any_arguments(*arguments: Any) -> Any:
    """A wrapped app, which says nothing of its arguments."""
    return create_app()(*arguments)


class Holder:
    app = create_app("held")


if __name__ == "__main__":
    create_app().run(host="0.0.0.0", port=3000)
