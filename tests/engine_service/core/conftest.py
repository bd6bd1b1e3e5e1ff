import pytest

from engine_service.core import recent_prompts


@pytest.fixture(autouse=True)
def short_prompts_are_kept(monkeypatch):
    """Tests have small prompts, and shall find those that begin like one before."""
    monkeypatch.setattr(recent_prompts, "_MIN_TOKENS", 1)
