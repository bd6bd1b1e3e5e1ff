"""Links and file names in Markdown lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "demo_model", "docs", "engine_service", "examples", "k8s", "kernels")
FOLDERS += ("pagestream", "protos", "router", "servicekit", "tests")
PAGES = [
    *ROOT.glob("*.md"),
    *(page for folder in FOLDERS for page in ROOT.joinpath(folder).rglob("*.md")),
]
# What the changelog says of the past may name what is gone.
PAGES_OF_TODAY = [page for page in PAGES if page.name != "CHANGELOG.md"]

LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FILE_NAME = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+\.\w+)`")
CODE_BLOCK = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def prose(page):
    return CODE_BLOCK.sub("", page.read_text())


def anchors(page):
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = [
        re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text) for text in HEADING.findall(prose(page))
    ]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    broken = []
    for target, anchor in LINK.findall(prose(page)):
        if ":" in target:
            continue
        file = page.parent / target if target else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(f"{target}#{anchor}")
    assert not broken


@pytest.mark.parametrize("page", PAGES_OF_TODAY, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page):
    names = set(FILE_NAME.findall(prose(page)))
    starts = (ROOT, page.parent, ROOT / "k8s/base")
    assert not [name for name in names if not any((start / name).exists() for start in starts)]
