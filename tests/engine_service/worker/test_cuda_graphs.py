import dataclasses
import random

import pytest
import torch

from engine_service.core.types import int32_array
from engine_service.models.checkpoint import resolve_checkpoint
from engine_service.models.config import parse_config
from engine_service.models.loading import build_model, load_weights
from engine_service.worker import graph_sizes
from engine_service.worker.cuda_graphs import StepGraph, StepGraphs
from engine_service.worker.graph_sizes import TokenSize
from engine_service.worker.input_batch import InputBatch
from engine_service.worker.kv_cache import allocate_kv_cache
from engine_service.worker.model_runner import ModelRunner
from engine_service.worker.prefix_tiles import PrefixTiles
from engine_service.worker.rows import Rows
from engine_service.worker.worker import Worker
from kernels.partial_attention import MAX_TOKENS
from tests.engine_service.plans import NewSequence, Row, make_plan
from tests.engine_service.tiny_models import CUDA_SHAPES, make_model, random_tokens

BLOCK_SIZE = 16
SHAPE = CUDA_SHAPES[1]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([Row(0, 5, 1), Row(1, 9, 1)], True),
        ([Row(0, 5, 1), Row(1, 9, 2)], False),
        ([Row(0, 5, 1, is_sampled=False), Row(1, 9, 1)], False),
    ],
)
def test_decode_step_is_one_whose_rows_all_compute_and_yield_one_token(rows, expected):
    assert Rows.of(make_plan(rows)).is_decode is expected


def batch_on_cpu(max_num_seqs, max_model_len=512):
    return InputBatch(
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        block_size=BLOCK_SIZE,
        vocab_size=100,
        device=torch.device("cpu"),
    )


def step_graphs(decode_sizes, other_sizes, sharing_sizes=()):
    """Returns graphs that were not captured.

    Others are (has_decodes, num_rows, num_tokens), and whether they share prefixes if they do.
    """
    batch = batch_on_cpu(8)
    names = "has_decodes", "num_rows", "num_tokens", "shares_prefixes"
    sizes = [TokenSize(**dict(zip(names, size, strict=False))) for size in other_sizes]
    sharing = [
        StepGraph.of_decodes(size, None, batch, shares_prefixes=True) for size in sharing_sizes
    ]
    return StepGraphs(
        [*(StepGraph.of_decodes(size, None, batch) for size in decode_sizes), *sharing],
        {size: StepGraph.of_tokens(size, None, batch) for size in sizes},
    )


@pytest.mark.parametrize(
    ("query_lens", "expected"),
    [
        ([1], (4, 4)),
        ([1] * 4, (4, 4)),
        ([1] * 5, (16, 16)),
        ([1] * 17, (32, 24)),
        ([20], (48, 8)),
        ([1, 1, 30], (32, 8)),
        ([2] * 7, (48, 8)),
        ([2] * 8, (32, 24)),
        ([40], (48, 8)),
        ([50], (64, 24)),
        ([65], None),
        ([1] * 22 + [2] * 2, None),
    ],
)
def test_step_takes_the_smallest_graph_with_room_for_padding(query_lens, expected):
    # The one without decodes is told from the others by its 48 tokens.
    others = [(True, 24, 64), (True, 24, 32), (False, 8, 48), (True, 8, 32)]
    graphs = step_graphs([16, 4], others)
    plan = make_plan([Row(slot, 0, length) for slot, length in enumerate(query_lens)])

    graph = graphs.fitting(Rows.of(plan))

    assert (graph and (graph.num_tokens, graph.num_rows)) == expected


@pytest.mark.parametrize(
    ("num_rows", "shares", "expected"),
    [
        (4, False, (4, False)),
        (5, False, (16, False)),
        (4, True, (4, False)),
        (16, True, (16, True)),
        (17, True, (24, True)),
        (16, False, (16, False)),
    ],
)
def test_step_that_shares_prefixes_takes_a_graph_that_reads_them_once(num_rows, shares, expected):
    graphs = step_graphs([4, 16], [], [16, 24])
    rows = Rows.of(make_plan([Row(slot, 9, 1) for slot in range(num_rows)]))

    graph = graphs.fitting(rows, shares_prefixes=shares)

    assert (graph.num_rows, graph.shares_prefixes) == expected


@pytest.mark.parametrize(
    ("query_lens", "expected"),
    [
        ([1] * 9 + [21], (32, 24, True)),
        ([1] * 9 + [24], (48, 24, True)),
        ([1] * 22 + [27], (50, 24, True)),
        # With a quarter more tokens than the smallest graph has, and with twice as many.
        ([1] * 9 + [40], (50, 24, True)),
        ([1] * 3 + [12], (16, 8, False)),
        # Too many tokens or rows for those that share.
        ([1] * 9 + [51], (64, 32, False)),
        ([1] * 23 + [9], (40, 32, False)),
    ],
)
def test_step_with_prompts_that_shares_prefixes_reads_them_once_where_that_pays(
    query_lens, expected
):
    shared = [(True, 24, 32, True), (True, 24, 48, True), (True, 24, 50, True)]
    others = [(True, 8, 16), (True, 32, 64), (True, 32, 48), (True, 32, 40)]
    graphs = step_graphs([4], [*others, *shared])
    rows = Rows.of(make_plan([Row(slot, 9, length) for slot, length in enumerate(query_lens)]))

    graph = graphs.fitting(rows, shares_prefixes=True)

    assert (graph.num_tokens, graph.num_rows, graph.shares_prefixes) == expected
    assert not graphs.fitting(rows).shares_prefixes


@pytest.mark.parametrize(
    ("num_computed", "num_rows", "is_short"),
    [(5, 1, True), (MAX_TOKENS - 1, 1, True), (MAX_TOKENS, 1, False), (5, 2, False)],
)
def test_one_short_sequence_has_a_graph_of_its_own(num_computed, num_rows, is_short):
    batch = batch_on_cpu(8)
    decodes = [StepGraph.of_decodes(size, None, batch) for size in (1, 2)]
    short = StepGraph.of_decodes(1, None, batch, max_seq_len=MAX_TOKENS)
    graphs = StepGraphs(decodes, {}, short)
    rows = Rows.of(make_plan([Row(slot, num_computed, 1) for slot in range(num_rows)]))

    assert (graphs.fitting(rows) is short) == is_short
    assert short._bounds.max_decode_seq_len == MAX_TOKENS


@pytest.mark.parametrize("max_model_len", [MAX_TOKENS, MAX_TOKENS + 1])
def test_where_all_sequences_are_short_one_alone_has_no_second_graph(monkeypatch, max_model_len):
    captured = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(StepGraph, "capture", lambda graph, _: captured.append(graph))
    monkeypatch.setattr(StepGraph, "time_replay", lambda graph: graph.num_tokens)
    batch = batch_on_cpu(2, max_model_len)

    graphs = StepGraphs.capture(None, batch, 2)

    bounds = [graph._bounds.max_decode_seq_len for graph in captured if graph.num_rows == 1]
    assert bounds == [max_model_len] + [MAX_TOKENS] * (max_model_len > MAX_TOKENS)
    for length in (1, max_model_len):
        row = Rows.of(make_plan([Row(0, length - 1, 1)]))
        bound = graphs.fitting(row)._bounds.max_decode_seq_len
        assert bound == (MAX_TOKENS if length == 1 else max_model_len)


def test_where_nothing_can_be_shared_no_graph_reads_prefixes_once():
    graphs = step_graphs([4, 16], [])
    rows = Rows.of(make_plan([Row(slot, 9, 1) for slot in range(16)]))

    assert not graphs.fitting(rows, shares_prefixes=True).shares_prefixes


def test_step_that_shares_prefixes_fills_a_graph_of_more_rows():
    batch = batch_on_cpu(40)
    graph = StepGraph.of_decodes(24, None, batch, shares_prefixes=True)
    plan = make_plan([Row(slot, 100, 1) for slot in range(39, 18, -1)])
    groups = int32_array([3, 32, 20, 30, 5, 2, 64, 39, 38])
    plan = dataclasses.replace(plan, shared_prefixes=groups)
    rows = Rows.of(plan)
    sent = batch.apply(plan, rows, 24, 24, PrefixTiles.of(plan, rows, 40))

    graph._rows.packed[:] = sent.packed
    decode = batch.read(graph._rows, graph._bounds).metadata.decode

    assert sent.packed.shape == graph._rows.packed.shape
    assert decode.seq_lens.tolist() == [101] * 21 + [0] * 3
    assert decode.shared.tiles[:2].tolist() == [[0, 2, 32], [2, 2, 64]]
    assert not decode.shared.tiles[2:].any()
    assert decode.shared.members[:4].tolist() == [19, 9, 0, 1]
    expected = dict.fromkeys(range(24), 0) | {19: 32, 9: 32, 0: 64, 1: 64}
    assert decode.shared.prefix_lens.tolist() == list(expected.values())


def test_slow_sizes_are_left_out_of_all_graphs(monkeypatch):
    """Of decode steps and of steps with prompts of any rows, with shared prefixes or not."""
    slow = {24, 40, 64}
    captured = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(StepGraph, "run_eagerly", lambda _: None)
    monkeypatch.setattr(StepGraph, "capture", lambda graph, _: captured.append(graph))
    monkeypatch.setattr(
        StepGraph,
        "time_replay",
        lambda graph: graph.num_tokens + 100.0 * (graph.num_tokens in slow),
    )
    monkeypatch.setattr(graph_sizes, "token_sizes", lambda _: [16, 40, 64, 80, 100])
    batch = batch_on_cpu(48)

    graphs = StepGraphs.capture(None, batch, 100)

    def taken(query_lens, *, shares_prefixes=False):
        plan = make_plan([Row(slot, 5, length) for slot, length in enumerate(query_lens)])
        return graphs.fitting(Rows.of(plan), shares_prefixes=shares_prefixes).num_tokens

    assert slow < {graph.num_tokens for graph in captured}
    assert [taken([1] * 16), taken([1] * 20), taken([1] * 33)] == [16, 32, 48]
    assert taken([1] * 20, shares_prefixes=True) == 32
    assert taken([1] * 20 + [40], shares_prefixes=True) == 80
    assert [taken([12]), taken([30]), taken([2] * 8), taken([2] * 16)] == [16, 80, 80, 80]
    assert taken([80, 1]) == 100


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("graphs") / "model", SHAPE)


class Graphs:
    """A worker, with graphs unless it is eager, beside the cache that it writes."""

    def __init__(self, folder, num_blocks=12, max_num_seqs=8, *, is_eager=False):
        device = torch.device("cuda")
        checkpoint = resolve_checkpoint(str(folder))
        config = parse_config(checkpoint.read_config())
        model = build_model(config, 512, torch.float32, device)
        load_weights(model, checkpoint)
        self.cache = allocate_kv_cache(
            config, num_blocks=num_blocks, block_size=BLOCK_SIZE, dtype=torch.float32, device=device
        )
        batch = InputBatch(
            max_num_seqs=max_num_seqs,
            max_model_len=512,
            block_size=BLOCK_SIZE,
            vocab_size=config.vocab_size,
            device=device,
        )
        runner = ModelRunner(model, self.cache, batch)
        with torch.inference_mode():
            graphs = None if is_eager else StepGraphs.capture(runner, batch, 64)
        self.worker = Worker(batch, runner, graphs, device)

    def run(self, rows, new=None, shared_prefixes=None):
        plan = dataclasses.replace(make_plan(rows, new), shared_prefixes=shared_prefixes)
        result = self.worker.collect(self.worker.launch(plan))
        assert result.device_seconds > 0
        return result.token_ids.tolist()

    def shares(self, rows):
        """Returns whether steps of these rows read shared prefixes once."""
        graph = self.worker._graphs.fitting(Rows.of(make_plan(rows)), shares_prefixes=True)
        return graph.shares_prefixes


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 3, 5, 8])
def test_padded_rows_touch_nothing(tiny, num_rows):
    graphs = Graphs(tiny.folder)
    # The null block, too: whoever read it would spread it.
    graphs.cache.blocks.fill_(torch.nan)
    prompts = [random_tokens(random.Random(slot), 5 + slot, tiny.vocab_size) for slot in range(8)]
    new = {slot: NewSequence(prompts[slot], [slot + 1]) for slot in range(num_rows)}
    first = graphs.run([Row(slot, 0, len(prompts[slot])) for slot in range(num_rows)], new)
    before = graphs.cache.blocks.clone()

    second = graphs.run([Row(slot, len(prompts[slot]), 1) for slot in range(num_rows)])

    expected = [tiny.greedy(prompts[slot], 2)[0] for slot in range(num_rows)]
    assert [list(pair) for pair in zip(first, second, strict=True)] == expected
    is_same = (graphs.cache.blocks == before) | (graphs.cache.blocks.isnan() & before.isnan())
    changed = (~is_same).nonzero()[:, [0, 4]].unique(dim=0).tolist()
    assert changed == [[slot + 1, len(prompts[slot])] for slot in range(num_rows)]


@pytest.mark.gpu
def test_step_with_prompts_is_padded_without_a_trace(tiny):
    graphs = Graphs(tiny.folder)
    graphs.cache.blocks.fill_(torch.nan)
    prompts = [random_tokens(random.Random(slot), 9 + slot, tiny.vocab_size) for slot in range(5)]
    new = {slot: NewSequence(prompts[slot], [2 * slot + 1, 2 * slot + 2]) for slot in range(5)}
    lengths = [len(prompt) for prompt in prompts]
    first = graphs.run([Row(slot, 0, lengths[slot]) for slot in (0, 1)], {0: new[0], 1: new[1]})
    before = graphs.cache.blocks.clone()

    # One decodes, one begins, one computes a part of its prompt, and one of these a single token.
    rows = [
        Row(2, 0, lengths[2]),
        Row(0, lengths[0], 1),
        Row(3, 0, 5, is_sampled=False),
        Row(4, 0, 1, is_sampled=False),
        Row(1, lengths[1], 1),
    ]
    second = graphs.run(rows, {slot: new[slot] for slot in (2, 3, 4)})
    third = graphs.run([Row(3, 5, lengths[3] - 5), Row(4, 1, lengths[4] - 1)])

    greedy = [tiny.greedy(prompt, 2)[0] for prompt in prompts]
    assert first == [greedy[0][0], greedy[1][0]]
    assert second == [greedy[2][0], greedy[0][1], greedy[1][1]]
    assert third == [greedy[3][0], greedy[4][0]]
    is_same = (graphs.cache.blocks == before) | (graphs.cache.blocks.isnan() & before.isnan())
    changed = (~is_same).nonzero()[:, [0, 4]].unique(dim=0).tolist()
    written = [(slot, p) for slot in (2, 3, 4) for p in range(lengths[slot])]
    written += [(slot, lengths[slot]) for slot in (0, 1)]
    assert changed == sorted([2 * slot + 1 + p // 16, p % 16] for slot, p in written)


@pytest.mark.gpu
@pytest.mark.parametrize("is_eager", [False, True], ids=["graphs", "eager"])
def test_prefixes_that_are_read_once_change_no_token(tiny, is_eager):
    num_seqs = 21
    graphs = Graphs(tiny.folder, num_blocks=60, max_num_seqs=24, is_eager=is_eager)
    graphs.cache.blocks.fill_(torch.nan)
    prefix = random_tokens(random.Random(7), 2 * BLOCK_SIZE, tiny.vocab_size)
    prompts, new = [], {}
    for slot in range(num_seqs):
        own = random_tokens(random.Random(slot), 3 + slot % 5, tiny.vocab_size)
        # The last two share nothing.
        shared = prefix if slot < num_seqs - 2 else random_tokens(random.Random(50 + slot), 32, 99)
        prompts.append([*shared, *own])
        blocks = [1, 2] if slot < num_seqs - 2 else [50 + 2 * slot - 38, 51 + 2 * slot - 38]
        new[slot] = NewSequence(prompts[slot], [*blocks, 3 + slot])
    groups = int32_array([num_seqs - 2, 32, *range(num_seqs - 2)])
    graphs.run([Row(0, 0, len(prompts[0]))], {0: new[0]})
    rows = [Row(slot, 32 if slot < num_seqs - 2 else 0, 0) for slot in range(1, num_seqs)]
    rows = [
        Row(row.slot, row.num_computed_tokens, len(prompts[row.slot]) - row.num_computed_tokens)
        for row in rows
    ]
    for row in rows:
        graphs.run([row], {row.slot: new[row.slot]})
    tokens = [[] for _ in prompts]
    late = random_tokens(random.Random(99), 9, tiny.vocab_size)
    for step in range(4):
        rows = [Row(slot, len(prompts[slot]) + step, 1) for slot in range(num_seqs)]
        new = None
        if step == 2:
            rows.append(Row(num_seqs, 0, len(late)))
            new = {num_seqs: NewSequence(late, [58])}
            assert is_eager or graphs.shares(rows)
        generated = graphs.run(rows, new, groups)
        for slot, token_id in zip(range(num_seqs), generated, strict=False):
            tokens[slot].append(token_id)
        if step == 2:
            assert generated[num_seqs:] == tiny.greedy(late, 1)[0]

    for slot, generated in enumerate(tokens):
        assert generated == tiny.greedy(prompts[slot], 5)[0][1:]


@pytest.mark.gpu
@pytest.mark.parametrize("is_eager", [False, True], ids=["graphs", "eager"])
def test_tokens_of_many_rows_are_in_the_order_of_the_plan(tiny, is_eager):
    num_seqs = 66
    graphs = Graphs(tiny.folder, num_blocks=70, max_num_seqs=num_seqs, is_eager=is_eager)
    prompts = [
        random_tokens(random.Random(slot), 1 + slot % 9, tiny.vocab_size)
        for slot in range(num_seqs)
    ]
    tokens = [
        graphs.run([Row(slot, 0, len(prompt))], {slot: NewSequence(prompt, [slot + 1])})
        for slot, prompt in enumerate(prompts)
    ]

    for _ in range(3):
        rows = [
            Row(slot, len(prompts[slot]) + len(tokens[slot]) - 1, 1) for slot in range(num_seqs)
        ]
        for slot, token_id in enumerate(graphs.run(rows)):
            tokens[slot].append(token_id)

    assert tokens == [tiny.greedy(prompt, 4)[0] for prompt in prompts]


@pytest.mark.gpu
def test_graph_of_one_size_does_not_disturb_another(tiny):
    graphs = Graphs(tiny.folder)
    prompts = [random_tokens(random.Random(slot), 9, tiny.vocab_size) for slot in range(8)]
    new = {slot: NewSequence(prompts[slot], [slot + 1, slot + 5]) for slot in range(4)}
    tokens = {slot: [] for slot in range(4)}

    def run(rows, new=None):
        for row, token_id in zip(rows, graphs.run(rows, new), strict=True):
            tokens[row.slot].append(token_id)

    run([Row(slot, 0, 9) for slot in range(4)], new)
    for step in range(6):
        slots = ([0, 1, 2, 3], [2], [3, 0, 1])[step % 3]
        run([Row(slot, 8 + len(tokens[slot]), 1) for slot in slots])

    for slot, generated in tokens.items():
        assert generated == tiny.greedy(prompts[slot], len(generated))[0]
