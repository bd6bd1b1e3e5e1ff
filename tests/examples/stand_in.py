"""A process that looks like a service to `examples.demo.services`, and misbehaves when told to.

`python -m tests.examples.stand_in BEHAVIOUR --host … --port … --operations-port …`, where BEHAVIOUR
is `good`, `fails` (ends at once), `silent` (never becomes ready) or `stubborn` (ignores SIGTERM and
has a child that does, too).
"""

import argparse
import http.server
import signal
import subprocess
import sys
import threading


class _Probes(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/readyz" else 404)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("behaviour")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--operations-port", type=int)
    options = parser.parse_args()
    if options.behaviour == "fails":
        sys.stdout.write("loading\n")
        sys.stderr.write("no memory for one block\n")
        return 2
    if options.behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
        subprocess.Popen([sys.executable, "-c", ignore])
    if options.behaviour == "silent":
        threading.Event().wait()
    http.server.HTTPServer((options.host, options.operations_port), _Probes).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
