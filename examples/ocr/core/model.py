from __future__ import annotations

import logging
from typing import Any

import cv2
import numpy as np
from config import MODEL_META_DATA
from maxfw.model import MAXModelWrapper
from rapidocr import RapidOCR
from werkzeug.exceptions import BadRequest

Line = list[tuple[Any, str]]  # boxes (four corners, x and y in pixels) and their text

logging.getLogger("RapidOCR").setLevel(logging.WARNING)


class ModelWrapper(MAXModelWrapper):
    """PP-OCR; its weights come with the rapidocr package."""

    MODEL_META_DATA = MODEL_META_DATA

    def __init__(self) -> None:
        self.model = RapidOCR(params={"Global.log_level": "warning"})

    def _pre_process(self, image: bytes) -> Any:
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR) if image else None
        if pixels is None:
            error = BadRequest()
            error.data = {"status": "error", "message": "The provided input is not a valid image."}  # type: ignore[attr-defined]
            raise error
        return pixels

    def _predict(self, pixels: Any) -> Any:
        return self.model(pixels)

    def _post_process(self, output: Any) -> list[list[str]]:
        """Paragraphs of lines: what stands side by side is a line, a gap as high as a line ends a
        paragraph."""
        lines: list[Line] = []
        for box, text in (
            sorted(zip(output.boxes, output.txts), key=lambda piece: middle(piece[0]))
            if output.txts
            else ()
        ):
            if lines and middle(box) - middle(lines[-1][0][0]) < np.ptp(box[:, 1]) / 3:
                lines[-1].append((box, text))
            else:
                lines.append([(box, text)])
        paragraphs: list[list[str]] = []
        for above, line in zip([None, *lines], lines):
            box = line[0][0]
            if above is None or box[:, 1].min() - above[0][0][:, 1].max() > np.ptp(box[:, 1]):
                paragraphs.append([])
            paragraphs[-1].append(
                " ".join(
                    text for _, text in sorted(line, key=lambda piece: float(piece[0][:, 0].min()))
                )
            )
        return paragraphs


def middle(box: Any) -> float:
    return float(box[:, 1].mean())
