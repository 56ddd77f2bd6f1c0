"""A model that loads until a file appears; the test makes it."""

import os
import threading

from flask import Flask

app = Flask(__name__)
print("loading", flush=True)
while not os.path.exists(os.environ["LOADED_WHEN"]):
    threading.Event().wait(0.01)


@app.route("/")
def index() -> str:
    return "loaded"


app.run()
