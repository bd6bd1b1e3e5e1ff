"""Step 8: draw a token, such that nothing but the request itself decides which.

From step 1: the model, `forward`. From step 2: `KVCache`.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from examples.guide.common import END, QUESTIONS, Answers, chat, figure, load_tokenizer
from examples.guide.step_01_forward import Model, forward, load, logits_of
from examples.guide.step_02_kv_cache import KVCache

MAX_TOKENS = 64


@dataclass(frozen=True)
class Sampling:
    """How a request wants its tokens drawn; a temperature of 0 is greedy."""

    temperature: float = 1.0
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0  # above 0
    seed: int = 0


def scores_of(logits: Tensor, sampling: Sampling) -> Tensor:
    """Returns [vocabulary] scores whose softmax is what to draw from: -inf is never drawn."""
    scores = logits / sampling.temperature
    kept = scores.sort(descending=True).values
    if sampling.top_k:
        kept = kept[: sampling.top_k]
    likelier = kept.softmax(-1).cumsum(-1) - kept.softmax(-1)  # than each one, summed
    kept = kept[likelier < sampling.top_p]
    return scores.masked_fill(scores < kept[-1], float("-inf"))


def mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Turns 64-bit numbers into as many that look random (the end of SplitMix64, 2014)."""
    numbers = numbers + 0x9E3779B97F4A7C15
    numbers = (numbers ^ (numbers >> np.uint64(30))) * 0xBF58476D1CE4E5B9
    numbers = (numbers ^ (numbers >> np.uint64(27))) * 0x94D049BB133111EB
    return numbers ^ (numbers >> np.uint64(31))


def gumbel(seed: int, position: int, tokens: range) -> Tensor:
    """Returns the noise of each token: a function of seed, position and the token alone."""
    key = mix(mix(np.array([seed], np.uint64)) ^ np.array([position], np.uint64))
    words = mix(key ^ np.array(tokens, np.uint64))
    uniform = ((words >> 12) + 0.5) * 2.0**-52  # between 0 and 1, and neither of them
    return torch.from_numpy(-np.log(-np.log(uniform)))


def draw(logits: Tensor, sampling: Sampling, position: int) -> int:
    """Draws the token that will stand at a position."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    noise = gumbel(sampling.seed, position, range(len(logits)))
    return int((scores_of(logits, sampling) + noise).argmax())


@dataclass
class Request:
    """A prompt, and what was answered so far: a restarted request begins with some of it."""

    prompt: list[int]
    sampling: Sampling
    answer: list[int] = field(default_factory=list)
    cache: KVCache | None = None

    def next_logits(self, model: Model) -> Tensor:
        """Computes what the cache lacks; returns the logits behind the last token."""
        known = self.prompt + self.answer
        self.cache = self.cache or KVCache(model, len(self.prompt) + MAX_TOKENS)
        positions = torch.arange(self.cache.num_tokens, len(known))
        hidden = forward(model, torch.tensor(known)[positions], positions, self.cache.attend)
        self.cache.num_tokens = len(known)
        return logits_of(model, hidden[-1:])[0]


def respond(
    model: Model, requests: list[Request], shared: torch.Generator | None = None
) -> list[int]:
    """Answers requests side by side, a token each a turn; returns the first one's answer.

    All draw from a shared generator, as for `Sampling()`. Without one, each draws as it asked to.
    """
    running = requests
    while running:
        logits = torch.stack([request.next_logits(model) for request in running])
        if shared:
            tokens = torch.multinomial(logits.softmax(-1), 1, generator=shared)[:, 0].tolist()
        else:
            places = [len(request.prompt + request.answer) for request in running]
            tokens = list(map(draw, logits, [request.sampling for request in running], places))
        for request, token in zip(running, tokens, strict=True):
            request.answer.append(token)
        running = [it for it in running if it.answer[-1] != END and len(it.answer) < MAX_TOKENS]
    return requests[0].answer


def chi_square(tokens: list[int], probabilities: Tensor) -> str:
    """Returns how far the counts of tokens are from those expected."""
    kinds = probabilities.nonzero()[:, 0]
    expected = probabilities[kinds] * len(tokens)
    counts = torch.tensor(tokens).bincount(minlength=len(probabilities))[kinds]
    return f"{((counts - expected) ** 2 / expected).sum():.1f}"


@torch.inference_mode()
def main() -> Answers:
    """Shows what the parameters do, what decides a draw, and whether draws are fair."""
    torch.set_num_threads(1)  # Threads would wait for each other longer than they compute.
    model, tokenizer, prompt = load(), load_tokenizer(), chat("Name a colour.")
    logits = Request(prompt, Sampling(), tokenizer.encode("Alice is").ids).next_logits(model)
    columns = [Sampling(), Sampling(0.5), Sampling(2), Sampling(top_k=3), Sampling(top_p=0.9)]
    parts = [scores_of(logits, sampling).softmax(-1) for sampling in columns]
    print("Alice is        plain cold (0.5)    hot (2)  top-k of 3 top-p of 0.9")
    for token in logits.topk(6).indices.tolist():
        row = [f"{100 * float(part[token]):9.1f} %" for part in parts]
        print(f"{tokenizer.decode([token]):10}" + " ".join(row))

    print()
    for label, mark in (("one generator", "≈ "), ("seed and position", "")):
        company = [Request(chat(QUESTIONS[index]), Sampling(temperature=0)) for index in (3, 6)]
        for others in ([], company):
            shared = torch.Generator().manual_seed(2) if mark else None
            answer = respond(model, [Request(prompt, Sampling(seed=2)), *others], shared)
            figure(f"{label}: beside {len(others)} others", mark + tokenizer.decode(answer))
    again = respond(model, [Request(prompt, Sampling(seed=2), answer[:3])])
    figure("seed and position: restarted after 3 tokens", tokenizer.decode(again))

    five, uniform = Sampling(top_k=5), torch.Generator().manual_seed(0)
    scores = scores_of(logits, five)
    tokens = [draw(logits, five, position) for position in range(1000)]
    figure("chi-square of draws at 1,000 positions", chi_square(tokens, scores.softmax(-1)))
    tokens = [draw(logits, Sampling(top_k=5, seed=seed), 0) for seed in range(1000)]
    figure("chi-square of draws with 1,000 seeds", chi_square(tokens, scores.softmax(-1)))
    tokens = (scores + torch.rand(1000, len(scores), generator=uniform)).argmax(-1).tolist()
    figure("chi-square of draws with uniform noise", chi_square(tokens, scores.softmax(-1)))
    figure("attention's scores for 4,096 tokens, bytes", f"{4 * model.num_heads * 4096**2:,}")
    return {tuple(request.prompt): request.answer for request in company}


if __name__ == "__main__":
    main()
