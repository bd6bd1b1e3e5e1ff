"""The guide: its steps print what its pages say, and generate what transformers generates."""

import ast
import importlib
import re

import pytest
import torch
import transformers

from examples.guide.common import CHECKPOINT
from examples.guide.pages import FOLDER, pages

ROOT = FOLDER.parents[1]
PAGES = list(pages())
GUIDE = ROOT / "examples" / "guide"
STEPS = sorted(GUIDE.glob("step_*.py"))
NEEDS = re.compile(r"^# needs .*$", re.MULTILINE)
COMMANDS = {
    "python": re.compile(r"python -m examples\.guide\.(\w+)"),
    "pytest": re.compile(r"pytest examples/guide/exercises -k (step_\d\d)"),
}


def name(path):
    return getattr(path, "path", path).stem


@pytest.fixture(scope="module")
def reference():
    model = transformers.AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)

    def generate(prompt, num_tokens):
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        found = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=num_tokens, eos_token_id=2
        )
        return found[0, len(prompt) :].tolist()

    return generate


@pytest.fixture
def unwritten_memory_is_nan(monkeypatch):
    """A step that reads what nobody has written then goes wrong each time, not once in a while."""
    # The training of the demo model switches it off for its process.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def without_measurements(printed):
    return re.sub(r"≈.*", "≈", printed)


@pytest.mark.usefixtures("unwritten_memory_is_nan")
@pytest.mark.parametrize("path", STEPS, ids=name)
def test_step_prints_what_its_page_says_and_generates_what_transformers_does(
    path, reference, capsys
):
    answers = importlib.import_module(f"examples.guide.{path.stem}").main()

    printed = capsys.readouterr().out
    page = next(page for page in PAGES if page.path.stem.startswith(path.stem[5:7]))
    said = page.printed()[f"examples.guide.{path.stem}"]
    assert without_measurements(printed) == without_measurements(said)
    for prompt, answer in answers.items():
        assert answer == reference(prompt, len(answer))


@pytest.mark.parametrize("path", STEPS, ids=name)
def test_step_is_short(path):
    assert len(path.read_text().splitlines()) < 150


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_page_has_a_readers_length(page):
    lines = page.text.splitlines()
    assert len(lines) <= 250
    assert all(len(line) <= 120 for line in lines if not line.startswith("|"))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_run_or_say_what_they_need(page):
    for block in page.blocks("sh"):
        for line in block.splitlines():
            if step := COMMANDS["python"].fullmatch(line):
                assert f"examples.guide.{step[1]}" in page.printed(), line
            elif found := COMMANDS["pytest"].fullmatch(line):
                assert page.path.stem.startswith(found[1][5:])
            else:
                assert NEEDS.search(block), line


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_is_that_of_a_file(page):
    """Each block of Python is part of a step, or of a file that the page links."""
    linked = [page.path.parent / target for target in targets(page) if target.endswith(".py")]
    sources = [text.read_text() for text in (*STEPS, *linked)]
    sources = ["\n".join(map(str.lstrip, source.splitlines())) for source in sources]
    for block in page.blocks("python"):
        # Parts that were left out are marked.
        for part in re.split(r"^\s*# …$\n", block, flags=re.MULTILINE):
            code = "\n".join(map(str.lstrip, part.strip("\n").splitlines()))
            assert any(code in source for source in sources), part


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_bold_figures_are_printed(page):
    printed = "".join(text for other in PAGES for text in other.blocks("text"))
    for figure in re.findall(r"\*\*(\d[\d,.]*)\*\*", page.prose):
        assert re.search(rf"(?<![\d,.]){re.escape(figure)}(?![\d]|[,.]\d)", printed), figure


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for label, target in links(page):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.path.parent / path).resolve() if path else page.path
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target
        symbol = re.fullmatch(r"`([\w.]+)`", label)
        if symbol and file.suffix == ".py" and not symbol[1].endswith(".py"):
            assert symbol[1].split(".")[-1] in symbols(file), (symbol[1], target)


def links(page):
    return re.findall(r"\[([^\]]+)\]\(([^)\s]+)\)", page.prose)


def targets(page):
    return [target for _, target in links(page)]


def anchors(file):
    heads = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def symbols(file):
    tree = ast.parse(file.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found
