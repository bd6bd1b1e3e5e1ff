import ctypes
import gc
from pathlib import Path

import pytest

from servicekit.garbage import collect_garbage_rarely, return_free_memory


def test_what_is_there_is_left_out_of_later_searches_for_garbage():
    thresholds = gc.get_threshold()
    try:
        collect_garbage_rarely(20_000, 30)

        assert gc.get_freeze_count() > 1000
        assert gc.get_threshold() == (20_000, 30, thresholds[2])
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this is not glibc")
def test_freed_memory_is_returned_to_the_system():
    def num_resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    # Too large for Python's own allocator, and too small for a mapping of their own.
    blocks = [bytes(4000) for _ in range(10_000)]
    del blocks[:-1]
    before = num_resident()

    return_free_memory()

    assert num_resident() < before - 20_000_000
    assert len(blocks) == 1
