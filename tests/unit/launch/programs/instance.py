# SPDX-License-Identifier: Apache-2.0
"""Stands in for `vllm serve`: `instance.py PORT ROUTER BEHAVIOUR ...`.

Behaviours, any number of them:
    stubborn        ignores SIGTERM
    forks           has a child, a grandchild, and an orphan in a session of its own, all of which ignore SIGTERM
    dies            writes 30 lines and ends with exit code 3 instead of serving
    crashes         ends by SIGSEGV once it has registered
    mute            never listens
    unregistered    serves, but never registers
    counts          notes in the folder of its log how many start at the same time
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

PORT, ROUTER, BEHAVIOUR = int(sys.argv[1]), sys.argv[2], set(sys.argv[3:])
SLEEP = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
SPAWN = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-I', '-S', '-c', sys.argv[1]], start_new_session={})"
)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def python(code, *arguments):
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", code, *arguments])


def register():
    body = json.dumps({"url": f"http://127.0.0.1:{PORT}"}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{ROUTER}/epd/instances", data=body), timeout=30).close()


def count_starts():
    folder = Path(os.environ["STARTS"])
    mine = folder / f"{PORT}.starting"
    mine.touch()
    time.sleep(0.3)
    with (folder / "counts").open("a") as counts:
        counts.write(f"{len(list(folder.glob('*.starting')))}\n")
    mine.unlink()


signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in BEHAVIOUR else lambda *_: os._exit(0))
if "forks" in BEHAVIOUR:
    python(SLEEP)
    python(SPAWN.format(False) + ".wait()", SLEEP)
    python(SPAWN.format(True), SLEEP).wait()
if "dies" in BEHAVIOUR:
    for line in range(30):
        sys.stderr.write(f"line {line}\n")
    sys.exit(3)
if "mute" in BEHAVIOUR:
    time.sleep(300)
if "counts" in BEHAVIOUR:
    count_starts()
server = HTTPServer(("127.0.0.1", PORT), Handler)
if "unregistered" not in BEHAVIOUR:
    register()
if "crashes" in BEHAVIOUR:
    server.timeout = 1.0
    server.handle_request()
    sys.stderr.write("about to crash\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGSEGV)
server.serve_forever()
