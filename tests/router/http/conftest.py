import pytest

from router.http import app
from tests.router.http.plain_api import PLAIN_API, PLAIN_OPERATIONS


@pytest.fixture
def plain_api(monkeypatch):
    """Adds endpoints that the tests know all about."""
    monkeypatch.setattr(app, "_APIS", [*app._APIS, PLAIN_API])
    monkeypatch.setattr(app, "_OPERATIONS", [*app._OPERATIONS, *PLAIN_OPERATIONS])
