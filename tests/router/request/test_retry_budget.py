from router.request.retry_budget import RetryBudget


def taken(budget):
    count = 0
    while budget.take():
        count += 1
    return count


def test_quiet_router_survives_the_loss_of_an_engine():
    budget = RetryBudget()
    assert taken(budget) == 100
    assert not budget.take()


def test_half_of_the_requests_may_be_retried():
    budget = RetryBudget()
    taken(budget)
    for _ in range(50):
        budget.add_request()
    assert taken(budget) == 25


def test_what_came_long_ago_counts_no_more():
    budget = RetryBudget()
    for _ in range(1_000_000):
        budget.add_request()
    assert taken(budget) == 1000
