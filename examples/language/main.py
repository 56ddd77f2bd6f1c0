"""Which language a text is in: py3langid, whose model is in its wheel, behind FastAPI."""

from typing import Any

from fastapi import FastAPI
from py3langid.langid import MODEL_FILE, LanguageIdentifier
from pydantic import BaseModel

app = FastAPI(title="Language")
identifier = LanguageIdentifier.from_pickled_model(MODEL_FILE, norm_probs=True)


class Text(BaseModel):
    text: str


@app.get("/health")
def health() -> str:
    return "ok"


@app.post("/predict")
def predict(body: Text) -> Any:
    language, probability = identifier.classify(body.text)
    return {"language": language, "probability": round(float(probability), 3)}
