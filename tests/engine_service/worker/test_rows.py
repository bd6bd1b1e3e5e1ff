"""The order of a step's rows."""

from random import Random

from engine_service.worker.rows import Rows
from tests.engine_service.plans import Row, make_plan

MANY = 64


def plan_of(num_decodes):
    """Returns rows of random lengths, of which every fifth computes two tokens."""
    random = Random(num_decodes)
    rows = []
    while sum(row.num_scheduled_tokens == 1 for row in rows) < num_decodes:
        count = 2 if len(rows) % 5 == 4 else 1
        rows.append(Row(len(rows), random.randint(0, 9), count, is_sampled=len(rows) % 7 != 0))
    return rows


def test_many_rows_of_one_token_begin_with_the_longest():
    given = plan_of(MANY)
    rows = Rows.of(make_plan(given))

    decodes = [row for row in given if row.num_scheduled_tokens == 1]
    # Equal ones stay in the order of the plan, as all others do.
    decodes.sort(key=lambda row: -row.num_computed_tokens)
    expected = [*decodes, *(row for row in given if row.num_scheduled_tokens == 2)]
    assert rows.slots.tolist() == [row.slot for row in expected]
    assert rows.num_computed.tolist() == [row.num_computed_tokens for row in expected]
    assert rows.query_start_loc.tolist() == [
        sum(row.num_scheduled_tokens for row in expected[:place])
        for place in range(len(expected) + 1)
    ]
    assert rows.num_decodes == MANY
    assert rows.slots[rows.place].tolist() == list(range(len(given)))
    sampled = [row.slot for row in given if row.is_sampled]
    assert rows.slots[rows.sampled_rows].tolist() == sampled
    assert not rows.is_in_order


def test_fewer_rows_of_one_token_stay_in_the_order_of_the_plan():
    given = plan_of(MANY - 1)
    rows = Rows.of(make_plan(given))

    expected = sorted(given, key=lambda row: row.num_scheduled_tokens)
    assert rows.slots.tolist() == [row.slot for row in expected]


def test_rows_are_in_order_if_none_had_to_move():
    decodes = [Row(slot, 9 - slot, 1) for slot in range(3)]

    assert Rows.of(make_plan([Row(0, 5, 1)])).is_in_order
    assert Rows.of(make_plan([*decodes, Row(3, 0, 2)])).is_in_order
    assert not Rows.of(make_plan([Row(3, 0, 2), *decodes])).is_in_order
    assert Rows.of(make_plan([Row(slot, 500 - slot, 1) for slot in range(MANY)])).is_in_order
    assert not Rows.of(make_plan([Row(slot, slot, 1) for slot in range(MANY)])).is_in_order
