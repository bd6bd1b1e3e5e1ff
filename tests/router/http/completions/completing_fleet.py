"""A fleet that continues each prompt with itself, so that several have answers of their own."""

from router.types.engine_events import Admitted, Finished, FinishReason, PromptLogprobs, Tokens
from tests.fakes import small_tokenizer
from tests.fakes.fake_fleet import ALL_PARAMS, ENGINE, FakeFleet, model_info
from tests.fakes.fake_logprobs import made_up_logprobs

NUM_TEXTS = 500
"""Tokens of the fake tokenizer that surely have a text."""


class CompletingFleet(FakeFleet):
    """Generates the tokens of the prompt again, one by one, with logprobs that are made up."""

    def __init__(self, **changes):
        super().__init__(
            model_info(**{"supported_params": ALL_PARAMS, "max_logprobs": 5, **changes})
        )
        # The process of a chat template takes time to start.
        self.files = small_tokenizer.files(chat_template=None)

    async def generate(self, request):
        self.requests.append(request)
        prompt, params = request.prompt_token_ids, request.sampling_params
        yield Admitted(engine=ENGINE, num_cached_tokens=3, seed=7)
        if params.prompt_logprobs is not None:
            middle = (1 + len(prompt)) // 2
            for start, stop in ((1, middle), (middle, len(prompt))):
                if start < stop:
                    yield PromptLogprobs(
                        first_position=start,
                        logprobs=prompt_logprobs(prompt, params.prompt_logprobs, start, stop),
                    )
        for position, token_id in enumerate(prompt[: params.max_tokens], len(prompt)):
            logprobs = None
            if params.logprobs is not None:
                logprobs = made_up_logprobs(position, [token_id], params.logprobs, NUM_TEXTS)
            yield Tokens(token_ids=[token_id], logprobs=logprobs)
        yield Finished(reason=FinishReason.LENGTH)


def prompt_logprobs(prompt, num_top, start=1, stop=None):
    return made_up_logprobs(start, prompt[start:stop], num_top, NUM_TEXTS)
