"""The name of a set of tokenizer files is the same in every engine and router, old or new."""

import hashlib

from engine_service.server.tokenizer_files import TokenizerFiles
from protos.wire.tokenizer_digest import tokenizer_digest

CONTENTS = {"tokenizer.json": b"{}", "chat_template.jinja": b"", "vocab.é": b"\x00\xff"}
DIGEST = "2f1409013e58228a3f325204ccee36b991a3fbfd9046d4d63dc086da50db8fae"


def test_digest_is_the_golden_one():
    digests = {name: hashlib.sha256(content).digest() for name, content in CONTENTS.items()}

    assert tokenizer_digest(digests) == DIGEST
    assert tokenizer_digest(dict(reversed(digests.items()))) == DIGEST
    assert tokenizer_digest({}) == ""


def test_engine_announces_the_golden_one(tmp_path):
    for name, content in CONTENTS.items():
        (tmp_path / name).write_bytes(content)

    assert TokenizerFiles.read(tmp_path.iterdir()).sha256 == DIGEST
