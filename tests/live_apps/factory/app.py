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


if __name__ == "__main__":
    create_app().run(host="0.0.0.0", port=3000)
