from types import ModuleType


def test_a_line_is_late_after_so_many_whole_seconds(exercise: ModuleType) -> None:
    patience = exercise.Patience(2)
    patience.sent("a")
    assert patience.tick() == []
    patience.sent("b")
    assert [patience.tick(), patience.tick(), patience.tick()] == [[], ["a"], ["b"]]
    assert patience.tick() == []


def test_further_lines_give_no_more_time(exercise: ModuleType) -> None:
    patience = exercise.Patience(2)
    found = []
    for _ in range(3):
        patience.sent("a")
        found.append(patience.tick())
    assert found == [[], [], ["a"]]


def test_a_client_that_reads_starts_anew(exercise: ModuleType) -> None:
    patience = exercise.Patience(1)
    for _ in range(5):
        patience.sent("a")
        assert patience.tick() == []
        patience.taken("a")
        assert patience.tick() == []
    patience.taken("a")
    patience.sent("a")
    assert [patience.tick(), patience.tick()] == [[], ["a"]]


def test_all_that_are_late_are_found_at_once(exercise: ModuleType) -> None:
    patience = exercise.Patience(0)
    patience.sent("a")
    patience.sent("b")
    assert sorted(patience.tick()) == ["a", "b"]
    patience.sent("a")
    assert patience.tick() == ["a"]
