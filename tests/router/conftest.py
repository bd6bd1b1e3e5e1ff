"""The pipeline of `pipelines.py`, with what it talks to."""

import pytest

from router.event_loop import GrpcEventLoop
from router.request.pipeline import Pipeline
from router.text import chat_template
from router.text.tokenizer_pool import TokenizerPool
from tests.fakes.fake_fleet import FakeFleet
from tests.router.pipelines import BOUNDS, Recorder


@pytest.fixture(autouse=True)
def patient_end(monkeypatch):
    """Waits for the end of a killed template worker, which takes a while on a busy machine.

    An event loop does not wait as long. The worker would then be a ResourceWarning in a later test.
    """
    monkeypatch.setattr(chat_template, "_LOOP_REAP_SECONDS", 10.0)


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


def pytest_asyncio_loop_factories():
    """The loop that serves."""
    return {"router": GrpcEventLoop}
