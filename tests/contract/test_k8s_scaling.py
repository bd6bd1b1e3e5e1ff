"""The fleet grows by metrics that exist, and shrinks no faster than engines drain."""

import re
from pathlib import Path

from tests.contract.manifests import FLEET, Deployed

METRICS = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
FLEET_OF = Deployed(FLEET)


def scaling():
    return FLEET_OF.find("ScaledObject", "engine")["spec"]


def test_it_scales_the_engines_and_owns_their_number():
    engine = FLEET_OF.find("StatefulSet", "engine")
    assert scaling()["scaleTargetRef"] == {
        "apiVersion": engine["apiVersion"],
        "kind": engine["kind"],
        "name": engine["metadata"]["name"],
    }
    assert "replicas" not in engine["spec"]
    assert 1 < scaling()["minReplicaCount"] < scaling()["maxReplicaCount"]


def test_it_asks_for_metrics_of_the_model_that_is_served():
    model = FLEET_OF.engine_config().model
    served = model.served_model_name or model.model.rpartition("/")[2]
    queries = [trigger["metadata"]["query"] for trigger in scaling()["triggers"]]
    asked = [re.fullmatch(r'sum\((\w+){model_name="(.+)"}\)', query) for query in queries]
    assert [match[1] for match in asked] == [
        "pagestream_engine_requests_waiting",
        "pagestream_engine_kv_cache_usage_ratio",
    ]
    for match in asked:
        assert f"| `{match[1]}` | gauge | `model_name` |" in METRICS
        assert match[2] == served
    for trigger in scaling()["triggers"]:
        # Divided by the number of engines; nothing found is an error, not no load.
        assert trigger["metricType"] == "AverageValue"
        assert trigger["metadata"]["ignoreNullValues"] == "false"


def test_one_engine_at_a_time_leaves_and_has_its_drain_to_do_it():
    down = scaling()["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    [policy] = down["policies"]
    assert (policy["type"], policy["value"]) == ("Pods", 1)
    grace = FLEET_OF.pod("engine")["spec"]["terminationGracePeriodSeconds"]
    assert policy["periodSeconds"] >= grace
