"""What keys have used, by their names."""

from router.access.keyring import Keyring
from router.server.metrics import RouterMetrics
from tests.router.access.key_files import KEY, OTHER, entry, write

PREFIX = "pagestream_router_api_key"


def series(metrics):
    """Returns the values of all series about keys, by name and key."""
    return {
        (sample.name.removeprefix(PREFIX), sample.labels.get("key")): sample.value
        for family in metrics.registry.collect()
        if family.name.startswith(PREFIX)
        for sample in family.samples
    }


def test_router_without_keys_has_no_series_of_keys():
    assert series(RouterMetrics()) == {("s_file_failures_total", None): 0}


async def test_use_is_counted_by_name_and_a_revoked_key_takes_its_series_along(tmp_path):
    path = write(tmp_path / "keys", entry(), entry(OTHER, "b"))
    metrics = RouterMetrics()
    keyring = metrics.keys.keyring = Keyring(path)
    limits = keyring.of_key(KEY).limits
    limits.enter(2)
    limits.settle(limits.reserve(50, is_exact=True), 20, 7)

    found = series(metrics)
    assert {name: value for (name, key), value in found.items() if key == "a"} == {
        "_requests_total": 2,
        "_requests_in_flight": 2,
        "_refusals_total": 0,
        "_prompt_tokens_total": 20,
        "_generated_tokens_total": 7,
    }
    assert found["_requests_total", "b"] == 0

    # The same name with another key: the counters go on.
    write(path, entry("new", "a"))
    await keyring.refresh()
    path.write_text("")
    await keyring.refresh()
    found = series(metrics)
    assert {key for _, key in found} == {None, "a"}
    assert found["_prompt_tokens_total", "a"] == 20
    assert found["s_file_failures_total", None] == 1
