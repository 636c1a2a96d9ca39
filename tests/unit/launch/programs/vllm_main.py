# SPDX-License-Identifier: Apache-2.0
"""Stands in for `vllm.entrypoints.cli.main`: registers as an instance of its role, serves nothing but its health."""

import argparse
import json
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

FINGERPRINT = dict.fromkeys(("config", "weights", "dtype", "processor", "vllm"), "same")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def register(router, description):
    while True:
        request = urllib.request.Request(f"{router}/epd/instances", data=json.dumps(description).encode())
        urllib.request.urlopen(request, timeout=30).close()
        time.sleep(1)


parser = argparse.ArgumentParser()
parser.add_argument("command", choices=["serve"])
for name in ("model", "--host", "--port", "--epd-role", "--epd-router"):
    parser.add_argument(name, **({} if name == "model" else {"required": True}))
options, rest = parser.parse_known_args()
print("given:", " ".join(rest), flush=True)  # noqa: T201
address = f"{options.host}:{options.port}"
description = {
    "instance_id": address,
    "epoch": "1",
    "url": f"http://{address}",
    "roles": options.epd_role,
    "models": [options.model],
    "fingerprint": FINGERPRINT,
    "limits": {},
}
server = HTTPServer((options.host, int(options.port)), Handler)
threading.Thread(target=register, args=(options.epd_router, description), daemon=True).start()
server.serve_forever()
