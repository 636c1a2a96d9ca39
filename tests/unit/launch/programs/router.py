# SPDX-License-Identifier: Apache-2.0
"""Stands in for the router: `router.py PORT [OBJECTION]`. Ready unless it is told what to object to."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, OBJECTION = int(sys.argv[1]), " ".join(sys.argv[2:])
INSTANCES = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/epd/instances":
            self.answer(200, {"instances": INSTANCES})
        elif self.path == "/ready" and OBJECTION:
            self.answer(503, {"error": {"message": OBJECTION}})
        else:
            self.answer(200, {})

    def do_POST(self):
        INSTANCES.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.answer(200, {})

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
