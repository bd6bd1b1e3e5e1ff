"""The pipeline of `pipelines.py`, with what it talks to."""

import pytest

from router.request.pipeline import Pipeline
from router.text.tokenizer_pool import TokenizerPool
from tests.fakes.fake_fleet import FakeFleet
from tests.router.pipelines import BOUNDS, Recorder


@pytest.fixture
def fleet():
    return FakeFleet()


@pytest.fixture
def observer():
    return Recorder()


@pytest.fixture
def pipeline(fleet, observer):
    with TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers:
        yield Pipeline(fleet, tokenizers, observer, BOUNDS)
