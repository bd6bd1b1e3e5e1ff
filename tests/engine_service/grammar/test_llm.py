"""Grammars of sequences of a real model, in one process."""

import json
import time

import pytest
import torch

from engine_service.core.types import FinishReason, Request, int32_array
from engine_service.errors import InvalidRequest
from engine_service.llm import LLM
from protos.wire.reason import Reason
from protos.wire.sampling_params import Grammar, SamplingParams
from tests.engine_service.grammar.model import CHECKPOINT, TOKENIZER, token_ids

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"enum": [1, 20, 300]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
OBJECT = Grammar(form="json_schema", text=json.dumps(SCHEMA))
CHOICE = Grammar(form="choice", choices=("north", "south-west"))
PROMPT = token_ids("Where is it? ")


@pytest.fixture(scope="module")
def llm():
    with LLM(str(CHECKPOINT), device="cpu", num_blocks=64, block_size=16) as found:
        yield found


def text_of(llm, completion):
    """Returns the text of a completion that must have ended by itself."""
    assert completion.finish_reason is FinishReason.STOP
    *text, end = completion.token_ids
    assert end in llm.info.eos_token_ids
    return TOKENIZER.decode_bytes(text).decode()


def run(llm, *params):
    return llm.generate([PROMPT] * len(params), list(params), use_tqdm=False)


def test_rows_with_and_without_grammars_do_not_change_each_other(llm):
    params = [
        SamplingParams(grammar=OBJECT, temperature=1.5, seed=1, max_tokens=80),
        SamplingParams(temperature=1.5, seed=2, max_tokens=20),
        SamplingParams(grammar=CHOICE, temperature=0, max_tokens=40),
        SamplingParams(grammar=CHOICE, temperature=1.5, seed=3, ignore_eos=True, max_tokens=40),
    ]
    together = run(llm, *params)
    alone = [run(llm, one)[0] for one in params]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    value = json.loads(text_of(llm, together[0]))
    assert set(value) == {"name", "age"}
    assert value["age"] in (1, 20, 300)
    for completion in together[2:]:
        # Even where the request ignores the end: nothing may follow.
        assert text_of(llm, completion) in CHOICE.choices


def test_ranks_draw_what_a_single_one_draws(llm):
    params = [
        SamplingParams(grammar=OBJECT, temperature=1.5, seed=1, max_tokens=80, logprobs=2),
        SamplingParams(temperature=1.5, seed=2, top_p=0.9, max_tokens=20),
        SamplingParams(grammar=CHOICE, temperature=0, max_tokens=40),
    ]
    alone = run(llm, *params)
    options = {"device": "cpu", "num_blocks": 64, "block_size": 16, "tensor_parallel_size": 2}
    with LLM(str(CHECKPOINT), **options) as ranks:
        together = run(ranks, *params)
        assert json.loads(text_of(ranks, together[0]))
        assert text_of(ranks, together[2]) in CHOICE.choices
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]


def test_min_tokens_does_not_outlast_the_text(llm):
    (completion,) = run(llm, SamplingParams(grammar=CHOICE, min_tokens=30, max_tokens=40))
    assert text_of(llm, completion) in CHOICE.choices


def test_preempted_sequences_continue_as_undisturbed(llm):
    letters = Grammar(form="regex", text="([a-c] ){45}")
    params = [
        SamplingParams(grammar=letters, temperature=1.5, seed=seed, max_tokens=150)
        for seed in range(6)
    ]
    with LLM(str(CHECKPOINT), device="cpu", num_blocks=12, block_size=16) as small:
        few = run(small, *params)
        assert small.num_preemptions
    undisturbed = run(llm, *params)
    assert not llm.num_preemptions
    assert [one.token_ids for one in few] == [one.token_ids for one in undisturbed]


def test_a_bad_grammar_is_refused_before_anything_is_computed(llm):
    bad = SamplingParams(grammar=Grammar(form="regex", text="a("))
    with pytest.raises(InvalidRequest, match=r"prompt 1: grammar.regex cannot be used: .*unclosed"):
        run(llm, SamplingParams(grammar=CHOICE), bad)
    assert run(llm, SamplingParams(max_tokens=1))


def run_core(llm, *requests):
    """Runs requests given by their fields; returns their tokens and failures by number."""
    core = llm._core
    for number, fields in enumerate(requests, start=1000):
        core.add(Request(request_id=number, **fields))
    tokens, failures = {}, {}
    deadline = time.monotonic() + 60
    while core.has_work and time.monotonic() < deadline:
        output = core.step()
        # Each has one.
        for number, token_id in zip(output.request_ids, output.token_ids, strict=True):
            tokens.setdefault(number - 1000, []).append(token_id)
        failures |= {failure.request_id - 1000: failure.error for failure in output.failures}
    assert not core.has_work
    return tokens, failures


def request(params, *, prompt=PROMPT, resumed=()):
    return {
        "prompt_token_ids": int32_array(prompt),
        "resume_token_ids": int32_array(list(resumed)),
        "sampling_params": params,
    }


def test_resumed_tokens_must_match_the_grammar(llm):
    params = SamplingParams(grammar=CHOICE, temperature=0, max_tokens=40)
    (whole,) = run(llm, params)
    given = whole.token_ids[:2]
    foreign = token_ids("?")
    tokens, failures = run_core(
        llm, request(params, resumed=given), request(params, resumed=[*given, *foreign])
    )
    assert {0: whole.token_ids[2:]} == tokens
    assert list(failures) == [1]
    assert isinstance(failures[1], InvalidRequest)
    assert failures[1].message.startswith(f"resume_token_ids[2] is {foreign[0]}, which")


def test_a_grammar_and_tokens_that_contradict_it_are_the_client_s_mistake(llm):
    prompt = PROMPT * 8
    run_core(llm, request(SamplingParams(max_tokens=1), prompt=prompt))
    pool = llm._core.scheduler.pool
    findable = set(pool.findable_hashes())
    assert findable
    params = SamplingParams(grammar=CHOICE, allowed_token_ids=tuple(token_ids("?")))
    tokens, failures = run_core(llm, request(params, prompt=prompt))
    assert not tokens
    assert isinstance(failures[0], InvalidRequest)
    assert "grammar, allowed_token_ids together allow no token" in failures[0].message
    assert findable <= set(pool.findable_hashes())


def test_a_grammar_does_not_excuse_a_model_without_logits():
    consistent = SamplingParams(grammar=CHOICE, allowed_token_ids=tuple(token_ids("north")))
    alone = SamplingParams(grammar=CHOICE)
    with LLM(str(CHECKPOINT), device="cpu", num_blocks=64, block_size=16) as spoilt:
        weights = spoilt._core._executor._worker._runner._model.embed_tokens.weight
        with torch.inference_mode():
            weights[PROMPT[-1]] = torch.nan
        tokens, failures = run_core(spoilt, request(consistent), request(alone))
    assert not tokens
    assert len(failures) == 2
    for error in failures.values():
        assert error.reason is Reason.INTERNAL
        assert "NaN or infinite" in error.message
