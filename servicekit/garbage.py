"""What is no longer needed: Python's garbage, a search for which stops all threads, and memory."""

import ctypes
import gc


def collect_garbage_rarely(*thresholds: int) -> None:
    """Excludes existing objects from later collections, and collects less often.

    Call it when a service has started and holds most of its long-lived objects. Reference counts
    free almost all short-lived ones.

    Args:
        thresholds: One to three, as `gc.set_threshold` takes them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*thresholds)


def return_free_memory() -> None:
    """Returns freed memory to the system, of which glibc keeps much for later; it takes some ms."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
