"""What other engines reach on NVIDIA H200s, and what their memory and arithmetic allow.

Measured with the workloads of `benchmarks/workloads.py` in-process, bfloat16, random weights, best
of two runs: torch 2.11.0+cu130, triton 3.6.0, driver 580.159.04, 2026-11-23 (one GPU) and
2026-11-28 (two of one host, NV18, without NVLink multicast). The limit counts the bytes of weights
and cache over 4.27 TB/s, the operations of prompts over 722 TFLOP/s and, of two GPUs, 5 us for each
all-reduce.
"""

TOKENS_PER_SECOND = {
    "qwen3-0.6b": {
        "limit": {
            "nano_bench": 35_712,
            "decode_b1": 3_458,
            "decode_b64": 24_572,
            "prefill": 535_000,
            "decode_b8": 23_700,
            "decode_b16": 26_950,
            "shared_prefix": 154_900,
        },
        "vLLM, the better of 0.24 and 0.26": {
            "decode_b8": 3_293,
            "decode_b16": 5_911,
            "shared_prefix": 15_966,
        },
        "vLLM 0.24.0 (FA3)": {
            "nano_bench": 23_687,
            "decode_b1": 617,
            "decode_b64": 14_215,
            "prefill": 340_997,
        },
        "nano-vllm bb823b3 (FA3)": {
            "nano_bench": 19_315,
            "decode_b1": 451,
            "decode_b64": 12_582,
            "prefill": 318_716,
            "shared_prefix": 16_828,
        },
    },
    "qwen3-8b": {
        "limit": {
            "nano_bench": 12_196,
            "decode_b1": 281,
            "decode_b64": 5_766,
            "prefill": 47_800,
            "shared_prefix": 20_990,
        },
        "vLLM, the better of 0.24 and 0.26": {"shared_prefix": 8_414},
        "vLLM 0.24.0 (FA3)": {
            "nano_bench": 9_361,
            "decode_b1": 193,
            "decode_b64": 4_594,
            "prefill": 40_860,
        },
        "nano-vllm bb823b3 (FA3)": {
            "nano_bench": 8_439,
            "decode_b1": 170,
            "decode_b64": 4_243,
            "prefill": 40_572,
            "shared_prefix": 7_139,
        },
    },
}
"""Of one GPU. Output tokens per second; of `prefill`, input tokens."""

TOKENS_PER_SECOND_OF_TWO = {
    "qwen3-8b": {
        "limit": {
            "nano_bench": 22_860,
            "decode_b1": 468,
            "decode_b64": 10_830,
            "prefill": 95_600,
        },
        "vLLM 0.24.0 (FA3)": {
            "nano_bench": 14_246,
            "decode_b1": 262,
            "decode_b64": 6_383,
            "prefill": 68_550,
        },
    },
    "qwen3-32b": {
        "limit": {
            "nano_bench": 7_010,
            "decode_b1": 123,
            "decode_b64": 2_960,
            "prefill": 21_650,
        },
        "vLLM 0.24.0 (FA3)": {
            "nano_bench": 4_922,
            "decode_b1": 90,
            "decode_b64": 2_215,
            "prefill": 17_145,
        },
    },
}
"""The same of two GPUs that share a model."""

SECONDS_TO_READY_OF_TWO = {
    "qwen3-8b": {"vLLM 0.24.0 (FA3)": 80},
    "qwen3-32b": {"vLLM 0.24.0 (FA3)": 86},
}
"""Until two GPUs that share a model can run a step."""
