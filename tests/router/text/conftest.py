import pytest

from tests.router.text.templates import Templates


@pytest.fixture
def templates():
    made = Templates()
    yield made
    made.close()
