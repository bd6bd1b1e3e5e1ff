"""That compiled kernels which start early do not read early what may not be ready."""

import json

import pytest

from tests.kernels.uninterpreted import run_uninterpreted

# Areas: a table of addresses, which no kernel writes.
WEIGHTS = {"weight", "norm_weight", "q_weight", "k_weight", "areas"}
LOADS = {"ld.global", "cp.async"}
READ_EARLY = {
    "_few_rows_kernel": WEIGHTS,
    "_rms_norm_kernel": WEIGHTS,
    "_qk_norm_rope_store_kernel": WEIGHTS | {"cos_sin", "positions", "cache_locs"},
    "_split_kernel": {"seq_lens", "splits", "prefix_lens"},
    "_partial_attention_kernel": WEIGHTS
    | {"cos_sin", "positions", "cache_locs", "seq_lens", "block_table", "kv_cache"},
    "_parts_linear_kernel": WEIGHTS | {"seq_lens"},
    "_combine_kernel": {"seq_lens", "prefix_lens"},
    "tagged_words_kernel": WEIGHTS,
    "flagged_rows_kernel": WEIGHTS,
    "two_shots_kernel": WEIGHTS,
}
"""What each kernel may read before it waits; others begin with the wait."""
PRODUCT = "_linear_hopper_kernel"
"""Its warps run different code, of which the text shows no order."""
COMPILED = set(READ_EARLY) | {
    "_silu_and_mul_kernel",
    "_shared_kernel",
    "_part_kernel",
    "_best_part_kernel",
    "_append_tokens_kernel",
    "_split_sequences_kernel",
}


@pytest.fixture(scope="module")
def launches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled")
    written = run_uninterpreted(folder, "-m", "tests.kernels.hopper_compiler")
    return [json.loads(line) for line in written.splitlines()]


def test_products_for_hopper_fit_into_its_shared_memory(launches):
    sizes = [x["shared_bytes"] for x in launches if x["kernel"] == PRODUCT]
    assert len(sizes) == 12
    assert max(sizes) <= 227 * 1024


def test_compiled_kernels_wait_before_they_write_or_read_what_may_not_be_ready(launches):
    launches = [launch for launch in launches if launch["kernel"] != PRODUCT]
    assert {launch["kernel"] for launch in launches} == COMPILED
    for launch in launches:
        instructions = launch["instructions"]
        place = instructions.index("griddepcontrol.wait")
        assert instructions[place + 1] == "griddepcontrol.launch_dependents", launch["kernel"]
        assert instructions.count("griddepcontrol.wait") == 1, launch["kernel"]
        reads_first = launch["kernel"] in READ_EARLY
        has_idle = "splits" in launch["read_early"] or launch["kernel"].startswith("_partial")
        may_branch = has_idle or is_beside_prefixes(launch)
        # Programs without work end before the wait, and of those beside prefixes one waits.
        branches = {"bra", "ret"} if may_branch else set()
        assert set(instructions[:place]) <= LOADS | branches, launch["kernel"]
        if is_beside_prefixes(launch):
            assert "bra" in instructions[:place]
        assert (place > 0) == reads_first, launch["kernel"]
        assert set(launch["read_early"]) <= READ_EARLY.get(launch["kernel"], set())
        assert bool(launch["read_early"]) == reads_first, launch["kernel"]


def test_nobody_waits_for_the_parts_of_prefixes_that_others_combine(launches):
    beside = [launch for launch in launches if is_beside_prefixes(launch)]

    assert len(beside) == 2
    undivided, divided = (set(launch["read"]) for launch in beside)
    assert {"queries", "block_table"} <= undivided & divided
    assert not {"partial", "log_totals"} & undivided
    # Its own parts, of sequences that share nothing.
    assert {"partial", "log_totals"} <= divided


def is_beside_prefixes(launch):
    return launch["kernel"] == "_split_kernel" and launch["follows_prefixes"]
