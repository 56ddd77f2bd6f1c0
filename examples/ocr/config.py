# Flask and Flask-RESTX
DEBUG = False
RESTX_MASK_SWAGGER = False
SWAGGER_UI_DOC_EXPANSION = "none"

# The API
API_TITLE = "MAX OCR"
API_DESC = "Reads the text in a picture."
API_VERSION = "1.0.0"

# The model
MODEL_META_DATA = {
    "id": "max-ocr",
    "name": "PP-OCR",
    "description": "PP-OCR detection and recognition models on ONNX Runtime, as packaged by RapidOCR",
    "type": "Optical Character Recognition",
    "license": "Apache-2.0",
    "source": "https://github.com/RapidAI/RapidOCR",
}
