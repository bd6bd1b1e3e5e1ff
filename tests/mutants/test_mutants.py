"""Each mutant is noticed by the tests that it names. `make slow` and `make gpu` show it."""

import pytest

from tests.mutants.mutants import MUTANTS, ROOT

each_mutant = pytest.mark.parametrize(
    "mutant", MUTANTS, ids=[mutant.path.stem for mutant in MUTANTS]
)


@each_mutant
def test_mutant_fits_the_tree_and_names_tests(mutant):
    assert mutant.red
    for test in mutant.red + mutant.red_on_gpu:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}" in (ROOT / file).read_text()
    mutant.check_applies()


@pytest.mark.slow
@pytest.mark.timeout(600)
@each_mutant
def test_mutant_is_noticed(mutant, tmp_path):
    outcomes = mutant.outcomes(mutant.red, "not gpu and not slow", tmp_path)

    assert len(outcomes) >= len(mutant.red)
    assert mutant.survivors(outcomes) == []


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "mutant",
    [mutant for mutant in MUTANTS if mutant.red_on_gpu],
    ids=[mutant.path.stem for mutant in MUTANTS if mutant.red_on_gpu],
)
def test_mutant_is_noticed_on_a_gpu(mutant, tmp_path):
    outcomes = mutant.outcomes(mutant.red_on_gpu, "gpu", tmp_path)

    assert len(outcomes) >= len(mutant.red_on_gpu)
    assert mutant.survivors(outcomes) == []
