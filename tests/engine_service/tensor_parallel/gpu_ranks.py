"""A program: what a model answers on GPUs, and the tokens that each of its ranks has drawn.

The other ranks import it too, since it is their parent's main module; so what stands at its top
holds for all of them.
"""

import json
import os
import random
import sys
from collections import deque
from pathlib import Path

from engine_service.layers import ranks
from engine_service.llm import LLM, Grammar, SamplingParams
from engine_service.worker.worker import Worker
from kernels import peer_memory
from tests.engine_service.sampling_choices import random_choices
from tests.engine_service.tiny_models import random_tokens

ASKED = json.loads(sys.argv[1])
"""`folder` of the model, `num_ranks`, `dtype`, `enforce_eager`, how `sums` are made, and `results`,
a folder for the answers and for a file of tokens from each rank."""

NUM_TOKENS = 24
OPTIONS = {
    "block_size": 16,
    # Some sequences are preempted.
    "num_blocks": 32,
    "max_num_seqs": 8,
    # Prompts are cut, and steps may have more tokens than peer memory has rows.
    "max_num_batched_tokens": 320,
}

ASKS_FOR = (
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 0.8, "grammar": Grammar(form="regex", text="([a-m]{3} ){9}")},
)
_launch = Worker.launch
_in_flight: deque = deque()


def _launch_and_note(worker, plan):
    """Notes the tokens of the step before the last, for which nothing has to wait."""
    step = _launch(worker, plan)
    _in_flight.append(step)
    if len(_in_flight) > 2 and (ended := _in_flight.popleft()).sampled is not None:
        ended.ended.synchronize()
        path = Path(ASKED["results"], f"rank-{os.getpid()}")
        with path.open("a") as file:
            file.write(json.dumps(ended.sampled.token_ids.tolist()) + "\n")
    return step


Worker.launch = _launch_and_note
if ASKED["sums"] == "NCCL":
    peer_memory._obstacle = lambda group, device: "the test wants none"
if ASKED["sums"] == "copies":
    peer_memory.connect_peers.__kwdefaults__["max_rows"] = ranks._LANE_TOKENS = 32


def answers():
    """Returns tokens, logprobs of prompts, preemptions and the fingerprint."""
    options = {name: ASKED[name] for name in ("dtype", "enforce_eager")}
    with LLM(
        ASKED["folder"],
        device="cuda",
        tensor_parallel_size=ASKED["num_ranks"],
        **options,
        **OPTIONS,
    ) as llm:
        rng = random.Random(3)
        vocab_size = llm.info.vocab_size
        common = random_tokens(rng, 40, vocab_size)
        prompts = [[*common, *random_tokens(rng, 1 + 3 * i, vocab_size)] for i in range(6)]
        prompts += [random_tokens(rng, length, vocab_size) for length in (1, 16, 300, 90, 50, 60)]
        params = [
            SamplingParams(
                **(random_choices(rng, vocab_size) | {"stop_token_ids": ()})
                if i % 4 == 3
                else ASKS_FOR[i % 4],
                seed=i,
                max_tokens=NUM_TOKENS,
                ignore_eos=True,
            )
            for i in range(len(prompts))
        ]
        scored = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=2)
        assert "grammar" in llm.info.supported_params
        first = llm.generate(prompts, params, use_tqdm=False)
        again = llm.generate(prompts[:2], params[:2], use_tqdm=False)
        of_prompts = llm.generate(prompts[:8], scored, use_tqdm=False)
        return {
            "token_ids": [completion.token_ids for completion in [*first, *again]],
            "num_cached_tokens": [completion.num_cached_tokens for completion in again],
            "prompt_logprobs": [
                token.logprob
                for completion in of_prompts
                for token in completion.prompt_logprobs[1:]
            ],
            "num_preemptions": llm.num_preemptions,
            "fingerprint": llm.info.model_fingerprint,
        }


if __name__ == "__main__":
    Path(ASKED["results"], "answers").write_text(json.dumps(answers()))
