"""docs/parameters.md has every parameter, with a test that there is."""

from pathlib import Path

from protos.pagestream.router.v1 import router_pb2

ROOT = Path(__file__).parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| `")
]


def test_each_parameter_has_a_row_in_the_order_of_the_contract():
    fields = [field.name for field in router_pb2.SamplingParams.DESCRIPTOR.fields]

    assert [row[0] for row in ROWS] == [f"`{name}`" for name in fields]
    assert {len(row) for row in ROWS} == {8}


def test_each_row_names_a_test_that_there_is():
    for *_, test in ROWS:
        assert (ROOT / test.strip("`")).is_file(), test
