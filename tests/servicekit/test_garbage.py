import gc

from servicekit.garbage import collect_garbage_rarely


def test_what_is_there_is_left_out_of_later_searches_for_garbage():
    thresholds = gc.get_threshold()
    try:
        collect_garbage_rarely(20_000, 30)

        assert gc.get_freeze_count() > 1000
        assert gc.get_threshold() == (20_000, 30, thresholds[2])
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
