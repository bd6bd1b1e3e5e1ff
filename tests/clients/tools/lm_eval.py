"""lm-eval, the evaluation harness of EleutherAI, with questions that the demo model can answer."""

import json

from demo_model.conversation import TURN_END, TURN_START, Conversation
from demo_model.generator import questions
from tests.clients.commands import expect
from tests.clients.site import CHECKPOINT, Site, Tool

_NUM_QUESTIONS = 40
_NUM_CHOICES = 4
_TASKS = ("add", "subtract", "compare", "spell", "count words", "facts")
_MIN_SHARE = 0.9
_TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {output_type}
doc_to_text: "{text}"
doc_to_target: "{target}"
{more}
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
"""


async def check(site: Site) -> list[tuple[str, str]]:
    """Scores choices by their likelihood, and generates answers."""
    asked = [one for one in questions("clients", 1000) if _is_alone(one)][:_NUM_QUESTIONS]
    data = site.write("questions.jsonl", "\n".join(json.dumps(_row(one, asked)) for one in asked))
    tasks = {
        "likeliest": _TASK.format(
            name="likeliest",
            data=data,
            output_type="multiple_choice",
            text="{{prompt}}",
            target="{{answer}}",
            more='doc_to_choice: "{{choices}}"\ntarget_delimiter: ""',
            metric="acc",
        ),
        "generated": _TASK.format(
            name="generated",
            data=data,
            output_type="generate_until",
            text="{{question}}",
            target="{{choices[0]}}",
            more='generation_kwargs:\n  until: ["\\n\\n"]\n  max_gen_toks: 100',
            metric="exact_match",
        ),
    }
    for name, text in tasks.items():
        site.write(f"tasks/{name}.yaml", text)
    likeliest = await _evaluate(
        site,
        "likeliest",
        ("local-completions", f"base_url={site.url}/v1/completions,tokenizer={CHECKPOINT}"),
    )
    generated = await _evaluate(
        site,
        "generated",
        ("local-chat-completions", f"base_url={site.url}/v1/chat/completions"),
        "--apply_chat_template",
    )
    return [
        (
            f"local-completions: {len(asked)} questions with {_NUM_CHOICES} choices each, by the "
            "likelihood of their token IDs (echo, logprobs)",
            f"acc {likeliest:.3f}",
        ),
        (
            f"local-chat-completions: {len(asked)} questions, generate_until",
            f"exact_match {generated:.3f}",
        ),
    ]


def _is_alone(conversation: Conversation) -> bool:
    return conversation.task in _TASKS and len(conversation.messages) == 2


def _row(conversation: Conversation, asked: list[Conversation]) -> dict[str, object]:
    question, right = (message.content for message in conversation.messages)
    others = {one.answer for one in asked if one.answer != right}
    return {
        "question": question,
        "prompt": f"{TURN_START}user\n{question}{TURN_END}\n{TURN_START}assistant\n",
        "choices": [right, *sorted(others)[: _NUM_CHOICES - 1]],
        "answer": 0,
    }


async def _evaluate(site: Site, task: str, model: tuple[str, str], *options: str) -> float:
    """Returns the share of right answers."""
    kind, arguments = model
    await site.command(
        "lm_eval",
        *("--model", kind, "--model_args", f"model={site.model},num_concurrent=4,{arguments}"),
        *("--tasks", task, "--include_path", "tasks", "--output_path", task, *options),
    )
    (path,) = (site.folder / task).rglob("results_*.json")
    figures = json.loads(path.read_text())["results"][task]
    share = next(figures[name] for name in ("acc,none", "exact_match,none") if name in figures)
    expect(share >= _MIN_SHARE, f"{share:.1%} of the answers of {task} are right")
    return float(share)


TOOL = Tool(
    name="lm-eval",
    version="0.4.13",
    check=check,
    extra="api",
    needs=("transformers>=5.17,<6",),
)
