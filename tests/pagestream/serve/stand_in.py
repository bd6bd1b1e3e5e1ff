"""A process that looks like a service to `pagestream serve`, and misbehaves when told to.

`python -m tests.pagestream.serve.stand_in BEHAVIOUR OPERATIONS_PORT [HTTP_PORT]`, where BEHAVIOUR
is `good`, `loading` (never ready), `unfit` (says why it cannot start), `crashes` (once it is
ready), `stubborn` (never ready, ignores SIGTERM) or `steady` (ready, ignores SIGTERM). Each has a
child that ignores SIGTERM, too; with FOLLOWING set, it ends with its parent, as those of services
do. With an HTTP port it is a router.
"""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading

import servicekit.leash

IGNORE = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers of an operations port and of an HTTP port at once."""

    def do_GET(self):
        self.answer({"data": [{"id": "stand-in"}]})
        if behaviour == "crashes":
            sys.stderr.write("no more memory\n0000-00-00 00:00:00 INFO stand_in fine\n")
            sys.stderr.flush()
            signal.raise_signal(signal.SIGKILL)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({})

    def answer(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def end(*_):
    sys.stderr.write("asked to end\n")
    sys.stderr.flush()
    sys.exit(0)


def main():
    if behaviour == "unfit":
        sys.stderr.write("engine_service: model 'x': there is no such folder\n")
        return 2
    python = [sys.executable, "-I", "-S"]
    follow = [*python, servicekit.leash.__file__, str(os.getpid()), str(int(signal.SIGKILL))]
    subprocess.Popen([*(follow if "FOLLOWING" in os.environ else []), *python, "-c", IGNORE])
    is_deaf = behaviour in ("stubborn", "steady")
    signal.signal(signal.SIGTERM, signal.SIG_IGN if is_deaf else end)
    sys.stderr.write("loading\r\x1b[Astill loading\rnearly there\nwaits\n")
    sys.stderr.flush()
    if behaviour in ("loading", "stubborn"):
        threading.Event().wait()
    servers = [http.server.HTTPServer(("127.0.0.1", int(port)), Answers) for port in ports]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].serve_forever()
    return 0


if __name__ == "__main__":
    behaviour, *ports = sys.argv[1:]
    sys.exit(main())
