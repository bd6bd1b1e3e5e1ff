"""Solution of exercise 11."""


def fewest_sizes(most_rows: int, num_parts: int) -> list[int]:
    """Returns as few sizes of graphs as possible, in rising order, so that padding stays small."""
    sizes = []
    size = most_rows  # The largest step needs it. The next one begins where it may not pad.
    while size > 0:
        sizes.append(size)
        size -= size // num_parts + 1
    return sizes[::-1]
