import pytest
import torch

from kernels import partial_attention as module
from kernels import reference
from kernels.linear import linear_norm_linear
from kernels.partial_attention import (
    MAX_PARTS,
    MAX_TOKENS,
    PART_TOKENS,
    PartialAttention,
    can_leave_parts,
    combine_parts,
    partial_attention,
)
from kernels.partial_attention_linear import multiply_parts, multiply_parts_before_norm
from tests.kernels.paged_inputs import Shape, paged_inputs
from tests.kernels.targets import Target, needs_hopper, worst_row_error

EPS = 1e-6
CPU = Target(device="cpu", dtype=torch.float32)
GPU = Target(device="cuda", dtype=torch.bfloat16)
# Of Qwen3-0.6B, Llama-3.2-1B, Qwen2.5-0.5B, and the most and the fewest queries for a key.
SHAPES = [
    Shape(num_kv_heads=8, group=2, head_dim=128, block_size=64),
    Shape(num_kv_heads=8, group=4, head_dim=64, block_size=16),
    Shape(num_kv_heads=2, group=7, head_dim=64, block_size=32),
    Shape(num_kv_heads=2, group=8, head_dim=128, block_size=256),
    Shape(num_kv_heads=3, group=1, head_dim=64, block_size=16),
]
LENGTHS = [1, 2, 127, 128, 129, 130, 500, MAX_TOKENS - 1, MAX_TOKENS]


def draw(target, shape, length, *, has_norm=True):
    """Returns the arguments of `partial_attention` for a sequence with its newest token to store.

    The place of that token is NaN, as all that no token has written.
    """
    inputs = paged_inputs(target, shape, [1], [length])
    num_packed = shape.num_heads + 2 * shape.num_kv_heads
    block = inputs.block_table[0, (length - 1) // shape.block_size]
    location = int(block) * shape.block_size + (length - 1) % shape.block_size
    inputs.kv_cache[:, int(block), :, (length - 1) % shape.block_size] = torch.nan

    def weight():
        return target.randn(shape.head_dim) * 0.2 + 1 if has_norm else None

    arguments = {
        "qkv": target.randn(1, num_packed * shape.head_dim),
        "q_weight": weight(),
        "k_weight": weight(),
        "eps": EPS,
        "cos_sin": torch.randn(MAX_TOKENS, shape.head_dim).to(target.device),
        "positions": torch.tensor([length - 1], device=target.device),
        "cache_locs": torch.tensor([location], device=target.device),
        "kv_cache": inputs.kv_cache,
        "num_heads": shape.num_heads,
        "block_table": inputs.block_table,
        "seq_lens": inputs.seq_lens,
        "scale": inputs.scale,
    }
    if target.device == "cuda":
        torch.cuda.synchronize()
    return arguments


def truth_of(arguments):
    """Returns what the two separate functions give, and the cache that they leave, on the CPU."""
    arguments = {name: x.cpu() if torch.is_tensor(x) else x for name, x in arguments.items()}
    arguments["kv_cache"] = arguments["kv_cache"].clone()
    table, lengths, scale = (arguments.pop(name) for name in ("block_table", "seq_lens", "scale"))
    queries = reference.qk_norm_rope_store(**arguments)
    cache = arguments["kv_cache"]
    out = reference.paged_attention_decode(
        queries.float(), cache.float(), table, lengths, int(lengths), scale
    )
    return out.flatten(1), cache


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("length", [1, PART_TOKENS, 300])
def test_parts_are_those_of_attention(shape, length):
    arguments = draw(CPU, shape, length)
    expected, cache = truth_of(arguments)

    parts = partial_attention(**arguments)

    assert worst_row_error(combine_parts(parts), expected) < CPU.tolerance
    assert torch.equal(arguments["kv_cache"].nan_to_num(), cache.nan_to_num())
    assert parts.mixed.shape == (MAX_PARTS, shape.num_heads, shape.head_dim)
    largest, totals = parts.scales[: -(-length // PART_TOKENS)].unbind(-1)
    assert (totals >= 1).all()
    assert largest.isfinite().all()


def test_padding_gives_zeros_and_stores_nothing():
    arguments = draw(CPU, SHAPES[1], 5)
    arguments["seq_lens"].zero_()
    arguments["cache_locs"].fill_(-1)
    before = arguments["kv_cache"].clone()

    assert not combine_parts(partial_attention(**arguments)).any()
    assert torch.equal(arguments["kv_cache"].nan_to_num(), before.nan_to_num())


def random_parts(target, length, num_heads=16, head_dim=128):
    """Returns parts, of which those without tokens are NaN."""
    num_parts = -(-length // PART_TOKENS)
    mixed = torch.full((MAX_PARTS, num_heads, head_dim), torch.nan)
    scales = torch.full((MAX_PARTS, num_heads, 2), torch.nan)
    mixed[:num_parts] = torch.randn(num_parts, num_heads, head_dim)
    scales[:num_parts, :, 0] = torch.randn(num_parts, num_heads) * 5
    scales[:num_parts, :, 1] = torch.rand(num_parts, num_heads) * 50 + 1
    lengths = torch.tensor([length], dtype=torch.int32)
    return PartialAttention(*(x.to(target.device) for x in (mixed, scales, lengths)))


def test_parts_are_projected_as_what_they_are_parts_of():
    parts = random_parts(CPU, 300)
    weight, next_weight = CPU.randn(96, 2048) / 45, CPU.randn(80, 96) / 9
    norm = (CPU.randn(1, 96), CPU.randn(96), EPS, next_weight)

    ours = linear_norm_linear(parts, weight, *norm, is_gated=True)

    whole = linear_norm_linear(combine_parts(parts), weight, *norm, is_gated=True)
    assert all(map(torch.equal, ours, whole))


def test_unsupported_arguments_are_refused():
    arguments = draw(CPU, SHAPES[0], 5)
    two = torch.zeros(2, dtype=torch.int32)
    table = arguments["block_table"]
    wrong = {
        "kv_cache": arguments["kv_cache"].transpose(3, 4),
        "num_heads": 15,
        "scale": -1.0,
        "q_weight": CPU.randn(2 * 128)[::2],
        "qkv": arguments["qkv"].expand(2, -1),
        "k_weight": None,
        "cos_sin": arguments["cos_sin"].double(),
        "positions": arguments["positions"].int(),
        "cache_locs": arguments["cache_locs"].expand(2),
        "seq_lens": two,
    }
    cases = [*wrong.items(), ("block_table", table.expand(2, -1)), ("block_table", table.long())]
    for name, value in cases:
        with pytest.raises(ValueError, match=name):
            partial_attention(**arguments | {name: value})
    weight = CPU.randn(96, 1024)
    with pytest.raises(ValueError, match="weight"):
        linear_norm_linear(
            random_parts(CPU, 5), weight, CPU.randn(1, 96), CPU.randn(96), EPS, CPU.randn(8, 96)
        )


class OnGPU:
    """Stands in for packed rows on a GPU."""

    is_cuda, device = True, torch.device("cuda")

    def __init__(self, num_rows=1, dtype=torch.bfloat16):
        self.num_rows, self.dtype = num_rows, dtype

    def __len__(self):
        return self.num_rows


@pytest.mark.parametrize(
    ("is_supported", "changes"),
    [
        (True, {}),
        (True, {"num_heads": 14, "cache_shape": (2, 9, 2, 16, 64)}),
        (False, {"max_seq_len": MAX_TOKENS + 1}),
        (False, {"qkv": OnGPU(num_rows=2)}),
        (False, {"qkv": OnGPU(dtype=torch.float16)}),
        (False, {"qkv": OnGPU(dtype=torch.float32)}),
        (False, {"qkv": torch.zeros(1, 4096, dtype=torch.bfloat16)}),
        (False, {"cache_shape": (2, 9, 8, 16, 32)}),
        (False, {"num_heads": 24}),
        (False, {"num_heads": 16, "cache_shape": (2, 9, 1, 16, 128)}),
        (False, {"is_hopper": False}),
    ],
)
def test_kernel_is_for_one_short_sequence_of_small_models(monkeypatch, is_supported, changes):
    case = {
        "qkv": OnGPU(),
        "cache_shape": (2, 9, 8, 16, 128),
        "num_heads": 16,
        "max_seq_len": MAX_TOKENS,
        "is_hopper": True,
    } | changes
    monkeypatch.setattr(module, "is_hopper", lambda _: case["is_hopper"])
    cache = torch.empty(case["cache_shape"], device="meta")

    found = can_leave_parts(case["qkv"], cache, case["num_heads"], case["max_seq_len"])

    assert found == is_supported


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_parts_on_a_gpu_are_those_of_attention(shape, length):
    arguments = draw(GPU, shape, length, has_norm=length % 2 == 0)
    expected, cache = truth_of(arguments)

    parts = partial_attention(**arguments)
    first = combine_parts(parts)

    assert can_leave_parts(arguments["qkv"], arguments["kv_cache"], shape.num_heads, MAX_TOKENS)
    assert worst_row_error(first, expected) < GPU.tolerance
    ours = arguments["kv_cache"].cpu().float().nan_to_num()
    # The rotation is rounded once more or less.
    assert (ours - cache.float().nan_to_num()).abs().max() <= 2**-6 * cache.nan_to_num().abs().max()
    assert torch.equal(combine_parts(partial_attention(**arguments)), first)


@pytest.mark.gpu
@needs_hopper
def test_padding_on_a_gpu_gives_zeros_and_stores_nothing():
    arguments = draw(GPU, SHAPES[0], 5)
    arguments["seq_lens"].zero_()
    arguments["cache_locs"].fill_(-1)
    before = arguments["kv_cache"].clone()

    parts = partial_attention(**arguments)

    assert not combine_parts(parts).any()
    assert torch.equal(arguments["kv_cache"].nan_to_num(), before.nan_to_num())
    weight = GPU.randn(48, 2048)
    torch.cuda.synchronize()
    assert not multiply_parts(parts, weight).any()


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("length", [1, 128, 129, MAX_TOKENS])
@pytest.mark.parametrize(
    ("num_heads", "head_dim", "num_outs"), [(16, 128, 1024), (32, 64, 2048), (14, 64, 900)]
)
def test_parts_are_projected_on_a_gpu(length, num_heads, head_dim, num_outs):
    parts = random_parts(GPU, length, num_heads, head_dim)
    width = num_heads * head_dim
    weight = (GPU.randn(num_outs, width + 8) * width**-0.5)[:, :width]
    residual, norm_weight = GPU.randn(1, num_outs), GPU.randn(num_outs)
    torch.cuda.synchronize()
    expected = combine_parts(parts).to(GPU.dtype).double() @ weight.double().T

    assert worst_row_error(multiply_parts(parts, weight), expected) < GPU.tolerance
    scaled, total, squares = multiply_parts_before_norm(parts, weight, residual, norm_weight)

    expected = expected + residual.double()
    assert worst_row_error(total, expected) < GPU.tolerance
    assert worst_row_error(scaled, expected * norm_weight.double()) < GPU.tolerance
    assert worst_row_error(squares.sum(0), expected.square().sum(1)) < GPU.tolerance


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("hidden", [1024, 2048, 900])
@pytest.mark.parametrize(("num_outs", "is_gated"), [(3072, True), (12288, True), (72, False)])
def test_projected_parts_are_normalised_and_projected(hidden, num_outs, is_gated):
    parts = random_parts(GPU, 700)
    weight = GPU.randn(hidden, 2048) / 45
    norm = (GPU.randn(1, hidden), GPU.randn(hidden), EPS, GPU.randn(num_outs, hidden) / 30)
    torch.cuda.synchronize()

    ours = linear_norm_linear(parts, weight, *norm, is_gated=is_gated)

    whole = combine_parts(parts).to(GPU.dtype)
    twins = reference.linear_norm_linear(whole, weight, *norm, is_gated=is_gated)
    for out, twin in zip(ours, twins, strict=True):
        assert worst_row_error(out, twin) < 3e-2
