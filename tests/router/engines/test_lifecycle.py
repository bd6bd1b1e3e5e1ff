"""What may follow what in the life of an engine, and what each stage means."""

import asyncio
import logging

import pytest

from router.engines.connection_loss import Fault, Loss
from router.engines.lifecycle import Lifecycle, Stage
from router.types.engine_state import EngineLoad, EngineState
from tests.fakes.fake_fleet import model_info

SERVING, DRAINING = EngineState.SERVING, EngineState.DRAINING
CONNECTING, UNAVAILABLE = EngineState.CONNECTING, EngineState.UNAVAILABLE
MODEL = model_info()
LOAD = EngineLoad(state=SERVING, num_running=3)
LOSS = Loss(state=UNAVAILABLE, detail="it ended its stream")
STALL = Loss(state=UNAVAILABLE, detail="stalled", fault=Fault.STALLED)

STEPS = {
    "accept": lambda life: life.accept(MODEL),
    "report": lambda life: life.report(LOAD),
    "lose": lambda life: life.lose(LOSS),
    "fault": lambda life: life.lose(STALL),
    "recover": lambda life: life.recover(),
    "leave": lambda life: life.leave(),
    "come_back": lambda life: life.come_back(),
    "idle": lambda life: life.idle(),
    "close": lambda life: life.close(),
}
PATHS = {
    Stage.AWAY: "",
    Stage.QUARANTINED: "fault",
    Stage.ACCEPTED: "accept",
    Stage.CONNECTED: "accept report",
    Stage.LEAVING: "accept report leave",
    Stage.CLOSED: "accept report leave idle",
}
"""How an engine comes to each stage."""

AFTER = {
    Stage.AWAY: {
        "accept": Stage.ACCEPTED,
        "lose": Stage.AWAY,
        "fault": Stage.QUARANTINED,
        "leave": Stage.CLOSED,
        "idle": Stage.AWAY,
        "close": Stage.CLOSED,
    },
    Stage.QUARANTINED: {
        "lose": Stage.QUARANTINED,
        "fault": Stage.QUARANTINED,
        "recover": Stage.AWAY,
        "leave": Stage.CLOSED,
        "idle": Stage.QUARANTINED,
        "close": Stage.CLOSED,
    },
    Stage.ACCEPTED: {
        "report": Stage.CONNECTED,
        "lose": Stage.AWAY,
        "fault": Stage.QUARANTINED,
        "leave": Stage.CLOSED,
        "idle": Stage.ACCEPTED,
        "close": Stage.CLOSED,
    },
    Stage.CONNECTED: {
        "report": Stage.CONNECTED,
        "lose": Stage.AWAY,
        "fault": Stage.QUARANTINED,
        "leave": Stage.LEAVING,
        "idle": Stage.CONNECTED,
        "close": Stage.CLOSED,
    },
    Stage.LEAVING: {
        "report": Stage.LEAVING,
        "lose": Stage.CLOSED,
        "fault": Stage.CLOSED,
        "come_back": Stage.CONNECTED,
        "idle": Stage.CLOSED,
        "close": Stage.CLOSED,
    },
    Stage.CLOSED: dict.fromkeys(STEPS, Stage.CLOSED),
}
"""What each step leads to; what is not named here is a bug."""


def lived(path):
    life = Lifecycle("e:1", lambda: None)
    for step in path.split():
        STEPS[step](life)
    return life


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("stage", Stage)
def test_each_step_leads_where_it_may_and_nowhere_else(stage, step):
    life = lived(PATHS[stage])
    assert life.stage is stage
    after = AFTER[stage].get(step)

    if after is None:
        with pytest.raises(RuntimeError, match=f"engine e:1 is {stage.value}, where"):
            STEPS[step](life)
        assert life.stage is stage
    else:
        STEPS[step](life)
        assert life.stage is after
    assert life.closed.is_set() is (life.stage is Stage.CLOSED)


@pytest.mark.parametrize(
    ("path", "state", "detail"),
    [
        ("", CONNECTING, "not connected yet"),
        ("accept", CONNECTING, "not connected yet"),
        ("accept report", SERVING, ""),
        ("accept report leave", DRAINING, "it was removed from the list of engines"),
        ("accept report leave come_back", SERVING, ""),
        ("accept report lose", UNAVAILABLE, "it ended its stream"),
        ("accept report lose accept", UNAVAILABLE, "it ended its stream"),
        ("accept report leave lose", UNAVAILABLE, "it ended its stream"),
        ("accept report leave idle", DRAINING, "it was removed from the list of engines"),
        ("accept report leave idle report", DRAINING, "it was removed from the list of engines"),
        ("accept report leave idle close", UNAVAILABLE, "its connection was closed"),
        ("lose leave", UNAVAILABLE, "it ended its stream"),
        ("lose close", UNAVAILABLE, "its connection was closed"),
        ("fault lose recover", UNAVAILABLE, "it ended its stream"),
    ],
)
def test_state_and_its_reason_follow_from_stage_load_and_loss(path, state, detail):
    life = lived(path)

    assert (life.state, life.detail) == (state, detail)
    assert life.takes_requests is (state is SERVING)
    assert (life.served_model is MODEL) is (state in (SERVING, DRAINING))


@pytest.mark.parametrize(
    ("reported", "detail"),
    [(DRAINING, "it finishes its requests"), (UNAVAILABLE, "it reports an unknown state")],
)
@pytest.mark.parametrize("path", ["accept", "accept report", "accept report leave"])
def test_engine_that_is_connected_is_in_the_state_that_it_reports(path, reported, detail):
    life = lived(path)

    life.report(EngineLoad(state=reported))

    assert (life.state, life.detail) == (reported, detail)


@pytest.mark.parametrize(
    ("path", "is_accepted", "is_known"),
    [
        ("accept", True, True),
        ("accept report", True, True),
        ("accept report leave", True, True),
        ("accept report fault", False, True),
        ("accept report fault recover", False, False),
        ("accept report lose", False, False),
        ("accept report close", False, False),
    ],
)
def test_model_is_accepted_until_the_loss_and_known_through_a_quarantine(
    path, is_accepted, is_known
):
    life = lived(path)

    assert (life.accepted_model is MODEL) is is_accepted
    assert (life.known_model is MODEL) is is_known
    assert life.model is MODEL


def test_load_is_gone_with_the_connection():
    life = lived("accept report")
    assert life.load is LOAD

    life.lose(LOSS)

    assert life.load == EngineLoad()


def test_only_changes_of_what_the_engine_does_are_logged_and_each_failed_attempt_is_told(caplog):
    caplog.set_level(logging.INFO)
    told = []
    life = Lifecycle("e:1", lambda: told.append(life.state))

    steps = "lose lose accept report report leave come_back fault lose recover accept report"
    steps += " leave idle report close"
    for step in steps.split():
        STEPS[step](life)

    assert [record.getMessage() for record in caplog.records] == [
        "engine state changed engine=e:1 state=unavailable detail=it ended its stream",
        "engine state changed engine=e:1 state=serving detail=",
        "engine state changed engine=e:1 state=unavailable detail=stalled",
        "engine state changed engine=e:1 state=unavailable detail=it ended its stream",
        "engine state changed engine=e:1 state=serving detail=",
    ]
    levels = ["WARNING", "INFO", "WARNING", "WARNING", "INFO"]
    assert [record.levelname for record in caplog.records] == levels
    first_life = [UNAVAILABLE, UNAVAILABLE, SERVING, DRAINING, SERVING, UNAVAILABLE]
    assert told == [*first_life, UNAVAILABLE, SERVING, DRAINING, UNAVAILABLE]


def test_an_engine_that_loads_its_model_is_no_warning(caplog):
    caplog.set_level(logging.INFO)
    life = Lifecycle("e:1", lambda: None)

    life.lose(Loss(state=CONNECTING, detail="the engine is loading its model"))

    [record] = caplog.records
    assert record.levelname == "INFO"
    assert record.getMessage().endswith("state=connecting detail=the engine is loading its model")


async def test_whoever_waits_for_the_end_is_woken_by_it():
    life = lived("accept report leave")
    end = asyncio.create_task(life.closed.wait())
    await asyncio.sleep(0)
    assert not end.done()

    life.idle()

    assert await asyncio.wait_for(end, 10)
