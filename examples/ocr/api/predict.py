from __future__ import annotations

from typing import Any

from core.model import ModelWrapper
from flask_restx import fields
from maxfw.core import MAX_API, PredictAPI
from werkzeug.datastructures import FileStorage

input_parser = MAX_API.parser()
input_parser.add_argument(
    "image",
    type=FileStorage,
    location="files",
    required=True,
    help="A picture (PNG, JPEG, BMP or WebP)",
)
predict_response = MAX_API.model(
    "ModelPredictResponse",
    {
        "status": fields.String(required=True, description="Response status message"),
        "text": fields.List(
            fields.List(fields.String), description="The lines of each paragraph in the picture"
        ),
    },
)


class ModelPredictAPI(PredictAPI):
    model_wrapper = ModelWrapper()

    @MAX_API.doc("predict")
    @MAX_API.expect(input_parser)
    @MAX_API.marshal_with(predict_response)
    def post(self) -> dict[str, Any]:
        """Make a prediction given input data"""
        image = input_parser.parse_args()["image"].read()
        return {"status": "ok", "text": self.model_wrapper.predict(image)}
