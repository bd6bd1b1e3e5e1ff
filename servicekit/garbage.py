"""Python's garbage collector, which stops all threads while it runs."""

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
