"""Exercise 11: which sizes to record.

A step of n rows runs in the smallest graph of n rows or more; the rest of its rows is padding.
"""


def fewest_sizes(most_rows: int, num_parts: int) -> list[int]:
    """Returns as few sizes of graphs as possible, in rising order, so that padding stays small.

    Steps have 1 to `most_rows` rows. In none of them may more than one row in `num_parts` of the
    graph's rows be padding: with 4, a graph of 8 rows has 2 rows of padding at most, one of 7 has
    1, and one of 3 has none. No graph is larger than `most_rows`.
    """
    raise NotImplementedError
