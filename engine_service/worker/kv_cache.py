"""The pool of key and value blocks: block size in bytes, number of blocks, memory layout."""

from dataclasses import dataclass

import torch

from engine_service.config import CacheOptions
from engine_service.errors import StartupError
from engine_service.models.model_config import ModelConfig
from engine_service.worker.device import is_out_of_memory
from engine_service.worker.model_fit import gib

# Memory of the driver, the loaded kernels and the libraries' handles, outside torch's allocator.
_CONTEXT_BYTES = 768 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCache:
    """The keys and values of all layers.

    Block 0 is the null block, a target for writes that nothing reads. The layers of a block are
    adjacent, so that a block is one piece of memory.
    """

    blocks: torch.Tensor
    """[num_blocks + 1, num_layers, 2, num_kv_heads, block_size, head_dim]."""
    layers: tuple[torch.Tensor, ...]
    """Per layer, a view [2, num_blocks + 1, num_kv_heads, block_size, head_dim]."""

    @property
    def num_blocks(self) -> int:
        """Blocks that can hold tokens."""
        return self.blocks.shape[0] - 1

    @property
    def block_size(self) -> int:
        """Tokens of one block."""
        return self.blocks.shape[4]


def allocate_kv_cache(
    config: ModelConfig,
    *,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> KVCache:
    """Allocates the pool plus one null block. Only the null block is initialised.

    Raises:
        StartupError: The device does not have enough memory.
    """
    shape = (
        num_blocks + 1,
        config.num_layers,
        2,
        config.num_kv_heads,
        block_size,
        config.head_dim,
    )
    try:
        blocks = torch.empty(shape, dtype=dtype, device=device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        size = gib((num_blocks + 1) * bytes_per_block(config, block_size, dtype))
        raise StartupError(
            f"the KV cache of {num_blocks} blocks needs {size}, more than {device} has; "
            "lower num_blocks, cpu_cache_bytes or gpu_memory_utilization"
        ) from error
    blocks[0].zero_()
    layers = tuple(blocks[:, index].transpose(0, 1) for index in range(config.num_layers))
    return KVCache(blocks=blocks, layers=layers)


def bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Returns the bytes of one block over all layers."""
    per_token = config.num_layers * 2 * config.num_kv_heads * config.head_dim * dtype.itemsize
    return block_size * per_token


def num_blocks_on_cpu(options: CacheOptions, block_bytes: int) -> int:
    """Returns the number of blocks that the options allow on the CPU.

    Raises:
        StartupError: Not even one block fits.
    """
    if options.num_blocks is not None:
        return options.num_blocks
    num_blocks = options.cpu_cache_bytes // block_bytes
    if num_blocks < 1:
        raise StartupError(
            f"cpu_cache_bytes is {options.cpu_cache_bytes}, but one block of {options.block_size} "
            f"tokens takes {block_bytes} bytes; raise cpu_cache_bytes or lower block_size"
        )
    return num_blocks


def num_blocks_on_cuda(
    options: CacheOptions, block_bytes: int, graph_bytes: int, device: torch.device
) -> int:
    """Returns the number of blocks that fit on the GPU; call it after the largest step has run.

    The process may use `gpu_memory_utilization` of the GPU: for what it holds now, what the largest
    step took on top, the CUDA graphs, and the pool. Other processes on the GPU count only if they
    leave less than that.

    Args:
        options: The limits.
        block_bytes: Bytes of one block.
        graph_bytes: Memory that the driver will keep for CUDA graphs; 0 if none are captured.
        device: The GPU.

    Raises:
        StartupError: Not even one block fits.
    """
    if options.num_blocks is not None:
        return options.num_blocks
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device)
    activations = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    if graph_bytes:
        # The graphs have their own memory for a step's activations, one for all of them.
        activations = 2 * activations + graph_bytes
    share = int(total * options.gpu_memory_utilization)
    # The null block is part of the pool.
    available = min(share - held - _CONTEXT_BYTES, free) - activations - block_bytes
    num_blocks = available // block_bytes
    if num_blocks < 1:
        raise StartupError(
            f"not even one KV cache block of {block_bytes} bytes fits on {device}: of "
            f"{gib(total)}, {gib(free)} are free, the model takes {gib(held)}, the largest step "
            f"{gib(activations)}, and gpu_memory_utilization {options.gpu_memory_utilization:g} "
            f"allows {gib(share)}; raise it, lower max_num_batched_tokens or max_num_seqs, or free "
            "memory of the GPU"
        )
    return num_blocks
