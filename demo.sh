#!/usr/bin/env bash
# Serves the example model as a web action on this machine, without OpenWhisk.
# PORT (3233) is the URL's port.
set -euo pipefail
cd "$(dirname "$0")"
. requirements/install.sh
PORT=${PORT:-3233}
temporary=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -r "$temporary"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

alive() { # fails, with what the model has said last, unless both processes run
    kill -0 "$model" 2>/dev/null && kill -0 "$server" 2>/dev/null && return
    tail -n 20 "$temporary/log" >&2
    fail "The model has ended; these are the last lines of its log."
}

install examples/ocr/requirements.txt requirements/devserver.txt
"$python" - "$PORT" <<'END' || fail "Port $PORT is busy or no port: choose another with 'PORT=3234 ./demo.sh'."
import socket, sys
with socket.socket() as listener:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", int(sys.argv[1]) or -1))  # 0 would be any port
    except (OSError, OverflowError, ValueError):
        sys.exit(1)
END

echo "Loading the model"
container=$("$python" -c 'import socket; one = socket.socket(); one.bind(("", 0)); print(one.getsockname()[1])')
(cd examples/ocr && OPENWHISK_LISTEN_PORT=$container exec "$python" ../../openwhisk.py) >"$temporary/log" 2>&1 &
model=$!
touch "$temporary/url"
"$python" devserver.py "http://127.0.0.1:$container" --port "$PORT" --results >"$temporary/url" &
server=$!
until read -r url <"$temporary/url"; do alive && sleep 0.2; done
cat <<END

The model is a web action now. Call it from this folder:

    curl -F image=@assets/receipt.png $url

Its Swagger UI is at $url/
Ctrl-C stops it.
END
while alive; do sleep 0.2; done
