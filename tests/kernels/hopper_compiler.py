"""Compiles, without a GPU, what the kernels launch on Hopper.

A process of its own (`python -m tests.kernels.hopper_compiler`), as the tests' own interprets
kernels. Writes a line of JSON for each launch: the kernel's name, its `INSTRUCTION`s in order, and
the arguments that it reads before it waits.

The order is read from PTX, since LLVM may move a load over the wait that stands before it in
Triton's intermediate code. Only the latter has the names of arguments. The tests on a GPU show the
same by what kernels compute, but only there.
"""

import json
import re
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.runtime import JITFunction
from triton.runtime.jit import mangle_type

from kernels import (
    all_reduce,
    decode_splits,
    linear,
    linear_hopper,
    paged_attention_decode,
    partial_attention,
    partial_attention_linear,
    qk_norm_rope_store,
    rms_norm,
    sample,
    slots,
)
from kernels import silu_and_mul as activation
from kernels.attention_parts import Parts
from kernels.peer_memory import peer_memory
from kernels.shared_prefix import SharedPrefixes
from tests.kernels.sampling import COLUMNS, records_of

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
# What a kernel does that others can see, and where it may leave the straight way to it.
INSTRUCTION = re.compile(
    r"^\s*(?:@!?%\w+\s+)?"
    r"(ld\.global|cp\.async|st\.global|atom|red|bra|ret|griddepcontrol\.\w+)\b",
    re.MULTILINE,
)
# A result of Triton's intermediate code, the operation, and its first operand.
OPERATION = re.compile(r"\s*(%\w+) = ([\w.]+) (%\w+)")
NUM_ROWS, HIDDEN, HEAD_DIM, BLOCK_SIZE = 2, 256, 64, 16


def describe(value, is_constant):
    """Returns the type of an argument."""
    if is_constant or value is None:
        return "constexpr"
    if isinstance(value, TensorDescriptor):
        return mangle_type(value)
    if torch.is_tensor(value):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def compile_launch(kernel, *args, grid, warmup, **kwargs):
    """Stands in for a launch."""
    assert all(size > 0 for size in grid)
    assert not warmup
    arguments = dict(zip(kernel.arg_names, args, strict=False))
    arguments |= {name: kwargs.pop(name) for name in kernel.arg_names if name in kwargs}
    signature = {
        parameter.name: describe(arguments[parameter.name], parameter.is_constexpr)
        for parameter in kernel.params
    }
    constants = {name: arguments[name] for name, kind in signature.items() if kind == "constexpr"}
    # As at a launch: strides that are multiples of 16 let the compiler read ahead.
    divisible = {
        (parameter.num,): [["tt.divisibility", 16]]
        for parameter in kernel.params
        if signature[parameter.name].startswith("*")
        or (
            signature[parameter.name] == "i32"
            and arguments[parameter.name] % 16 == 0
            and not parameter.do_not_specialize
        )
    }
    is_gluon = isinstance(kernel, GluonJITFunction)
    source = (GluonASTSource if is_gluon else ASTSource)(kernel, signature, constants, divisible)
    compiled = triton.compile(source, target=HOPPER, options=kwargs)
    codes = compiled.asm
    code = codes["ttgir" if is_gluon else "ttir"]
    launch = {
        "kernel": kernel.__name__,
        "instructions": INSTRUCTION.findall(codes["ptx"]),
        "follows_prefixes": arguments.get("prefix_lens") is not None,
        "read": sorted(read(code) & set(arguments)),
        "read_early": sorted(read(before_wait(code)) & set(arguments)),
        "shared_bytes": compiled.metadata.shared,
    }
    sys.stdout.write(json.dumps(launch) + "\n")


def before_wait(ttir):
    """Returns the text up to the wait."""
    return ttir.partition("griddepcontrol.wait")[0]


def read(ttir):
    """Returns the names of the arguments from which it loads, and of values in loops."""
    sources, pointers = {}, []
    for line in ttir.splitlines():
        if operation := OPERATION.match(line):
            result, name, operand = operation.groups()
            sources[result] = operand
            if name == "tt.load":
                pointers.append(operand)
    names = set()
    for pointer in pointers:
        while pointer in sources:
            pointer = sources[pointer]
        names.add(pointer.removeprefix("%"))
    return names


def randn(*shape):
    return torch.randn(*shape, dtype=torch.bfloat16)


def zeros(*shape):
    return torch.zeros(*shape, dtype=torch.int64)


def launch_all():
    """Launches each kernel that starts before the one in front has ended."""
    x, residual, norm_weight = randn(NUM_ROWS, HIDDEN), randn(NUM_ROWS, HIDDEN), randn(HIDDEN)
    kv_cache, head_weight = randn(2, 9, 2, BLOCK_SIZE, HEAD_DIM), randn(HEAD_DIM)
    floats, integers = torch.zeros(NUM_ROWS), zeros(NUM_ROWS)
    linear._linear_triton(x, randn(40, HIDDEN))
    linear._linear_triton(randn(NUM_ROWS, 5000), randn(40, 5000))
    linear._linear_triton(x, randn(40, HIDDEN), is_gated=True)
    linear._norm_linear_triton(x, residual, norm_weight, 1e-6, randn(40, HIDDEN))
    for num_rows in (1, 32, 64):
        many, few = randn(num_rows, 4096), randn(num_rows, HIDDEN)
        linear_hopper.multiply(many, randn(6144, 4096), None, is_gated=False)
        linear_hopper.multiply(few, randn(40, HIDDEN), None, is_gated=True)
        linear_hopper.multiply_norm_multiply(
            *(many, randn(HIDDEN, 4096), few, norm_weight, 1e-6, randn(512, HIDDEN), None, None),
            is_gated=True,
        )
    rms_norm._rms_norm_triton(x, norm_weight, 1e-6)
    rms_norm._add_rms_norm_triton(x, residual, norm_weight, 1e-6)
    activation._silu_and_mul_triton(x)
    memory = peer_memory(1, [x, x], HIDDEN, x.dtype, NUM_ROWS, 1)
    for way in all_reduce.possible_ways(1, memory):
        norm = (residual, norm_weight, 1e-6, x, residual)
        all_reduce._launch(x, *norm, memory, way=way)
        all_reduce._launch(x, None, None, 0.0, x, None, memory, way=way)
    qk_norm_rope_store._qk_norm_rope_store_triton(
        *(randn(NUM_ROWS, 8 * HEAD_DIM), head_weight, head_weight, 1e-6),
        *(torch.zeros(50, HEAD_DIM), integers, integers, kv_cache, 4),
    )
    for num_splits, window in ((1, 0), (4, 0), (4, 100)):
        paged_attention_decode._paged_attention_decode_triton(
            *(randn(NUM_ROWS, 4, HEAD_DIM), kv_cache, zeros(NUM_ROWS, 3).int()),
            *(integers.int(), 0.1, Parts(num_own=num_splits), None, window),
        )
    integers_32 = integers.int()
    paged_attention_decode._paged_attention_decode_triton(
        *(randn(NUM_ROWS, 4, HEAD_DIM), kv_cache, zeros(NUM_ROWS, 3).int()),
        *(integers_32, 0.1, Parts(num_own=1, num_further=3), None, 0),
        splits=decode_splits._split_sequences_triton(integers_32, 3),
    )
    for num_own in (1, 3):
        paged_attention_decode._paged_attention_decode_triton(
            *(randn(NUM_ROWS, 4, HEAD_DIM), kv_cache, zeros(NUM_ROWS, 3).int()),
            *(integers_32, 0.1, Parts(num_own=num_own, num_shared=4), None, 0),
            SharedPrefixes(tiles=zeros(2, 3).int(), members=integers_32, prefix_lens=integers_32),
        )
    for head_dim, num_heads in ((64, 4), (128, 16)):
        weights = randn(head_dim) if num_heads == 4 else None
        parts = partial_attention._partial_attention_gluon(
            *(randn(1, (num_heads + 4) * head_dim), weights, weights, 1e-6),
            *(torch.zeros(50, head_dim), zeros(1), zeros(1), randn(2, 9, 2, BLOCK_SIZE, head_dim)),
            *(num_heads, zeros(1, 3).int(), zeros(1).int(), 0.1),
        )
        weight = randn(2048, num_heads * head_dim)
        partial_attention_linear.multiply_parts(parts, weight)
        norm = (randn(1, 2048), randn(2048))
        partial_attention_linear.multiply_parts_before_norm(parts, weight, *norm)
    sample._sample_triton(randn(NUM_ROWS, 3000), *records_of(floats, integers), integers, COLUMNS)
    slots._append_tokens_triton(zeros(NUM_ROWS, 50).int(), integers, integers, integers)


def main():
    JITFunction.run = compile_launch
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("kernels.") and hasattr(
            module, "dependent_launch"
        ):
            module.dependent_launch = lambda _: {"IS_DEPENDENT": True, "launch_pdl": True}
    all_reduce._is_timed = lambda _: True
    linear_hopper.num_multiprocessors = lambda _: 132
    launch_all()


if __name__ == "__main__":
    main()
