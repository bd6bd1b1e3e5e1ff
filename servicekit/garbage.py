"""Python's search for garbage, which stops all threads while it runs."""

import gc


def collect_garbage_rarely(*thresholds: int) -> None:
    """Leaves what is there by now out of all later searches, and searches less often.

    To be called when a service has started and holds most of what it will hold for good. Reference
    counts free almost everything that comes and goes.

    Args:
        thresholds: Up to three, as `gc.set_threshold` takes them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*thresholds)
