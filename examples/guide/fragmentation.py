"""How much memory the same requests need, in one piece each or in blocks. No model is needed."""

from collections import Counter

AT_ONCE = 16
LIMITS = (64, 256, 128)
"""The longest answers that the requests allow, in turn."""


def first_fit(taken: list[tuple[int, int]], length: int) -> int:
    """Returns the first place from which on so many are free.

    Args:
        taken: Where each piece of memory that is in use begins and ends.
        length: Places.
    """
    start = 0
    for begin, end in sorted(taken):
        if begin - start >= length:
            break
        start = end
    return start


def memory_needed(lengths: list[tuple[int, int]], num_requests: int = 480) -> dict[str, int]:
    """Lets requests come and go; returns the most places that were needed at any time.

    Args:
        lengths: Tokens of prompts and of their answers, in turn.
        num_requests: How many come; as one ends, the next begins.
    """
    queue = [(*lengths[i % len(lengths)], LIMITS[i % len(LIMITS)]) for i in range(num_requests)]
    running: list[tuple[int, int, tuple[int, int]]] = []  # tokens held, at the end, its piece
    most: Counter[str] = Counter()
    while queue or running:
        while queue and len(running) < AT_ONCE:
            prompt, answer, limit = queue.pop()
            start = first_fit([piece for _, _, piece in running], prompt + limit)
            running.append((prompt, prompt + answer, (start, start + prompt + limit)))
        now = {"tokens stored": sum(held for held, _, _ in running)}
        for size in (16, 64):
            now[f"blocks of {size}"] = sum(-(-held // size) * size for held, _, _ in running)
        now["pieces"] = sum(end - start for _, _, (start, end) in running)
        now["with holes"] = max(end for _, _, (_, end) in running)
        most |= Counter(now)
        running = [(held + 1, last, piece) for held, last, piece in running if held + 1 < last]
    return dict(most)
