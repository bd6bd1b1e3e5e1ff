"""A router whose tokenizer never ends with the text "never"; it says so in its log.

python -m tests.fakes.stuck_router --engines host:port --port 0 --operations-port 0
"""

import logging
import runpy
import threading

from router.text.tokenizer import Tokenizer

_encode_text = Tokenizer.encode_text


def encode_text(tokenizer, text, *arguments, **options):
    """Stands in for what takes longer than anybody waits."""
    if text != "never":
        return _encode_text(tokenizer, text, *arguments, **options)
    logging.getLogger("stuck_router").info("a text is tokenized for ever")
    threading.Event().wait()
    raise AssertionError("it is over")


if __name__ == "__main__":
    Tokenizer.encode_text = encode_text
    # As of one with patterns of its own, which may do that.
    Tokenizer.has_known_split = False
    runpy.run_module("router", run_name="__main__")
