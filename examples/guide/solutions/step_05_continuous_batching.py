"""Solution of exercise 5."""

from examples.guide.step_05_continuous_batching import Engine, Request


class FairEngine(Engine):
    """An engine that computes the oldest prompt and short ones side by side."""

    def schedule(self) -> list[tuple[Request, int]]:
        """Divides the budget; returns each request that is computed, and how many of its tokens."""
        shares = {request: 1 for request in self.running if request.num_uncomputed == 1}
        prompts = [request for request in self.running if request not in shares]
        left = self.budget - len(shares)
        if prompts:
            oldest, *others = prompts
            shares[oldest] = min(-(-left // 2), oldest.num_uncomputed)
            left -= shares[oldest]
            for request in sorted(others, key=lambda request: request.num_uncomputed):
                shares[request] = min(left, request.num_uncomputed)
                left -= shares[request]
            shares[oldest] = min(shares[oldest] + left, oldest.num_uncomputed)
        rows = [(request, count) for request, count in shares.items() if count]
        for request, count in rows:
            self.cache.grow(request, request.num_computed + count)
        return rows
