"""What a GPU is and has. A call of torch's takes microseconds, so it is asked once."""

import functools

import torch


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Returns whether the GPU has the instructions that only Hopper has."""
    return torch.cuda.get_device_capability(device)[0] == 9


@functools.cache
def num_multiprocessors(device: torch.device) -> int:
    """Returns how many programs run at a time if each fills a multiprocessor."""
    return torch.cuda.get_device_properties(device).multi_processor_count
