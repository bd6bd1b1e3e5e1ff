"""Checks shared by the public functions: the error names the wrong tensor and its value."""

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TRITON_HEAD_DIMS = (16, 32, 64, 128, 256)


def check_dtype(name: str, tensor: torch.Tensor, *allowed: torch.dtype) -> None:
    """Raises ValueError unless the tensor has one of the types, by default `DTYPES`."""
    if tensor.dtype not in (allowed or DTYPES):
        names = ", ".join(str(dtype) for dtype in allowed or DTYPES)
        raise ValueError(f"{name} has dtype {tensor.dtype}; supported: {names}")


def check_shape(name: str, tensor: torch.Tensor, *sizes: int | None) -> None:
    """Raises ValueError unless the tensor has these sizes; None stands for any size."""
    shape = tuple(tensor.shape)
    if len(shape) != len(sizes) or any(
        expected not in (None, size) for size, expected in zip(shape, sizes, strict=True)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in sizes)
        raise ValueError(f"{name} has shape {shape}; expected ({wanted})")


def check_contiguous_rows(name: str, tensor: torch.Tensor) -> None:
    """Raises ValueError unless the last dimension is contiguous; the others may have any stride."""
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name} has stride {tensor.stride(-1)} in its last dimension; expected 1")


def check_heads(num_heads: int, num_kv_heads: int) -> None:
    """Raises ValueError unless each key-value head serves a whole number of query heads."""
    if num_heads <= 0 or num_kv_heads <= 0 or num_heads % num_kv_heads:
        raise ValueError(
            f"num_heads is {num_heads}; expected a positive multiple of num_kv_heads {num_kv_heads}"
        )


def check_triton_head_dim(head_dim: int) -> None:
    """Raises ValueError unless the Triton kernels handle the head dimension."""
    if head_dim not in TRITON_HEAD_DIMS:
        raise ValueError(f"head_dim is {head_dim}; supported on a GPU: {TRITON_HEAD_DIMS}")


def check_window(window: int) -> None:
    """Raises ValueError for a number of tokens that no query can see."""
    if window < 0:
        raise ValueError(f"window is {window}; expected 0 or a positive number of tokens")


def check_out(queries: torch.Tensor, out: torch.Tensor | None) -> None:
    """Raises ValueError unless `out` can hold the attention of the queries."""
    if out is None:
        return
    check_dtype("out", out, queries.dtype)
    check_shape("out", out, *queries.shape)
    if not out.is_contiguous():
        raise ValueError(f"out has strides {out.stride()}; expected a contiguous tensor")


def check_new_rows(
    qkv: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    cache_locs: torch.Tensor,
    kv_cache: torch.Tensor,
    num_heads: int,
) -> None:
    """Raises ValueError on invalid arguments, of those of `qk_norm_rope_store`."""
    check_dtype("qkv", qkv)
    check_dtype("kv_cache", kv_cache, qkv.dtype)
    check_shape("kv_cache", kv_cache, 2, None, None, None, None)
    check_contiguous_rows("kv_cache", kv_cache)
    num_kv_heads, head_dim = kv_cache.shape[2], kv_cache.shape[4]
    check_heads(num_heads, num_kv_heads)
    check_shape("qkv", qkv, None, (num_heads + 2 * num_kv_heads) * head_dim)
    check_contiguous_rows("qkv", qkv)
    if head_dim % 2:
        raise ValueError(f"head_dim is {head_dim}; expected an even number")
    if q_weight is not None and k_weight is not None:
        for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
            check_dtype(name, weight, qkv.dtype)
            check_shape(name, weight, head_dim)
            check_contiguous_rows(name, weight)
    elif q_weight is not k_weight:
        raise ValueError("one of q_weight and k_weight is None; expected both or neither")
    check_dtype("cos_sin", cos_sin, torch.float32)
    check_shape("cos_sin", cos_sin, None, head_dim)
    check_contiguous_rows("cos_sin", cos_sin)
    for name, indices in (("positions", positions), ("cache_locs", cache_locs)):
        check_dtype(name, indices, torch.int64)
        check_shape(name, indices, qkv.shape[0])
        check_contiguous_rows(name, indices)


def check_read_keys(block_table: torch.Tensor, num_seqs: int | None, scale: float) -> None:
    """Raises ValueError on an invalid table of num_seqs sequences, None for any, or scale."""
    check_dtype("block_table", block_table, torch.int32)
    check_shape("block_table", block_table, num_seqs, None)
    check_contiguous_rows("block_table", block_table)
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale is {scale}; expected a positive number")


def check_paged_attention(
    queries: torch.Tensor, kv_cache: torch.Tensor, block_table: torch.Tensor, scale: float
) -> None:
    """Raises ValueError on invalid arguments, of those common to prefill and decode."""
    check_dtype("queries", queries)
    check_shape("queries", queries, None, None, None)
    _, num_heads, head_dim = queries.shape
    check_contiguous_rows("queries", queries)
    check_dtype("kv_cache", kv_cache, queries.dtype)
    check_shape("kv_cache", kv_cache, 2, None, None, None, head_dim)
    check_contiguous_rows("kv_cache", kv_cache)
    check_heads(num_heads, kv_cache.shape[2])
    check_read_keys(block_table, None, scale)
