"""Many activations of mixed sizes from 8 clients: none lost, none mixed up, and the process stays
as it was.

python benchmarks/soak.py [--python PYTHON_OF_THE_MODEL] [--activations N]
"""

from __future__ import annotations

import argparse
import base64
import concurrent.futures
import hashlib
import http.client
import json
import os
import random
import sys
import time
from pathlib import Path

from latency import ROOT, free_port, server


def activation(port: int, number: int) -> None:
    """Raises RuntimeError unless the answer is to this request."""
    body = random.Random(number).randbytes(
        random.Random(-number).choice((10, 1_000, 30_000, 100_000))
    )
    value = {
        "__ow_method": "post",
        "__ow_path": f"/seen/{number}",
        "__ow_query": f"number={number}",
        "__ow_headers": {},
    }
    value["__ow_body"] = base64.b64encode(body).decode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/run", json.dumps({"value": value, "activation_id": str(number)}))
    result = json.loads(connection.getresponse().read())
    connection.close()
    seen = json.loads(result["body"])
    got = seen["path"], seen["query"], hashlib.sha1(bytes.fromhex(seen["body"])).digest()
    if got != (str(number), f"number={number}", hashlib.sha1(body).digest()):
        raise RuntimeError(f"activation {number} was answered with {seen['path']}")


def state(pid: int) -> tuple[int, int, int]:
    """Resident kB, file descriptors, threads, of the idle process."""
    time.sleep(1)
    status = Path(f"/proc/{pid}/status").read_text()
    rss, threads = (int(status.partition(field)[2].split()[0]) for field in ("VmRSS:", "Threads:"))
    return rss, len(os.listdir(f"/proc/{pid}/fd")), threads


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--activations", type=int, default=50_000, help="(default: %(default)s)")
    arguments = parser.parse_args()
    os.environ["MALLOC_ARENA_MAX"] = (
        "1"  # else glibc's arenas, one a thread, come in steps that hide a leak
    )
    port, states = free_port(), []
    with (
        server(arguments.python, str(ROOT / "openwhisk.py"), port=port) as pid,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        tenth = arguments.activations // 10
        for part in range(10):
            for future in [
                pool.submit(activation, port, part * tenth + number) for number in range(tenth)
            ]:
                future.result()
            states.append(state(pid))
            print(
                f"{(part + 1) * tenth} activations answered right; resident kB, descriptors, threads:",
                *states[-1],
                flush=True,
            )
    print(f"resident after the last tenth / after the first: {states[-1][0] / states[0][0]:.4f}")


if __name__ == "__main__":
    main()
