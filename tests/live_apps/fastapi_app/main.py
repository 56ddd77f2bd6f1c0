"""A FastAPI app: its server, uvicorn, is one that openwhisk.py needs forward.py for."""

from typing import Any

from fastapi import FastAPI, Request, Response, UploadFile
from fastapi.responses import RedirectResponse, StreamingResponse
from pydantic import BaseModel

app = FastAPI()


class Text(BaseModel):
    text: str
    count: int = 1


@app.post("/predict")
async def predict(image: UploadFile, threshold: float = 0.5) -> Any:
    data = await image.read()
    return {"name": image.filename, "size": len(data), "threshold": threshold}


@app.post("/text")
def text(body: Text) -> Any:
    return {"text": body.text * body.count}


@app.get("/picture")
def picture() -> Response:
    return Response(bytes(range(256)) * 2000, media_type="image/png")


@app.get("/stream")
def stream() -> StreamingResponse:
    return StreamingResponse((f"data: {number}\n\n" for number in range(3)), media_type="text/csv")


@app.get("/moved")
def moved(to: str) -> RedirectResponse:
    return RedirectResponse(to)


@app.api_route("/seen/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
async def seen(request: Request) -> Any:
    body = await request.body()
    headers = {name: text for name, text in request.headers.items() if name.startswith("x-one")}
    target = (request.scope["raw_path"] + b"?" + request.scope["query_string"]).decode("latin-1")
    return {"target": target, "method": request.method, "body": body.hex(), "headers": headers}
