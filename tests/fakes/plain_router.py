"""The router's program, with the endpoints of the tests of its HTTP door beside its own."""

import sys

from router.__main__ import main
from router.http import app
from servicekit.process import exit_at_once
from tests.router.http.plain_api import PLAIN_API

if __name__ == "__main__":
    app._APIS.append(PLAIN_API)
    exit_at_once(main(sys.argv[1:]))
