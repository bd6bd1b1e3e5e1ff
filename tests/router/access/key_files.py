"""Files of API keys for tests."""

import hashlib

KEY = "pgs_" + "k" * 43
OTHER = "pgs_" + "o" * 43


def digest(key):
    return hashlib.sha256(key.encode()).hexdigest()


def entry(key=KEY, name="a", **options):
    """Returns the lines of one key."""
    lines = [f"- name: {name}", f"  sha256: {digest(key)}"]
    return "\n".join([*lines, *(f"  {k.replace('_', '-')}: {v}" for k, v in options.items()), ""])


def write(path, *entries, secret="5" * 64):
    """Writes the file and returns its path."""
    keys = "keys:\n" + "".join(entries) if entries else "keys: []\n"
    path.write_text(f"cache-secret: {secret!r}\n{keys}")
    return path
