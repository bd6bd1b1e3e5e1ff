"""The models that the engines of a fleet serve, by name."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

from protos.wire.number import shown_number
from protos.wire.sampling_params import DEFAULT_PARAMS, SamplingParams
from router.engines.member import FleetMember
from router.errors import NoEngine, UnknownModel
from router.types.engine_events import TokenRequest
from router.types.engine_state import Demands, ModelInfo, ModelSnapshot

RETRY_SECONDS = 1.0
"""Seconds after which a client that found no engine may try again."""


class Catalogue:
    """What `models`, `find` and `served` return: engines come and go rarely, requests always ask.

    Args:
        members: A view of the engines.
    """

    def __init__(self, members: Collection[FleetMember]) -> None:
        self._members = members
        self._found: dict[str, ModelInfo] = {}
        self._models: list[ModelSnapshot] | None = None
        self._served: list[ModelInfo] | None = None

    def forget(self) -> None:
        """Must be called when an engine has changed its state."""
        self._found.clear()
        self._models = self._served = None

    def models(self) -> Sequence[ModelSnapshot]:
        """Returns the models of all connected engines, by name."""
        if self._models is None:
            self._models = models(self._members)
        return self._models

    def find(self, name: str) -> ModelInfo:
        """Returns the model served under a name. Raises as `find` does, whose answer it keeps."""
        found = self._found.get(name)
        if found is None:
            found = self._found[name] = find(name, self._members)
        return found

    def served(self) -> Sequence[ModelInfo]:
        """Returns the model of each connected engine."""
        if self._served is None:
            served = [member.life.served_model for member in self._members]
            self._served = [info for info in served if info is not None]
        return self._served


def models(members: Collection[FleetMember]) -> list[ModelSnapshot]:
    """Returns the models of all connected engines, by name, as `find` describes them."""
    infos: dict[str, list[ModelInfo]] = {}
    counts: Counter[str] = Counter()
    for member in sorted(members, key=lambda member: member.life.accepted_at):
        if (info := member.life.served_model) is None:
            continue
        infos.setdefault(info.name, []).append(info)
        counts[info.name] += member.life.takes_requests
    return [
        ModelSnapshot(info=_combined(infos[name]), num_serving_engines=counts[name])
        for name in sorted(infos)
    ]


def find(name: str, members: Collection[FleetMember]) -> ModelInfo:
    """Returns the model served under a name; an empty name means the only model.

    The length, the most logprobs and the supported parameters are the most that any engine has. All
    else comes from the engine that has been connected longest, so that a new engine does not change
    how requests are made; but defaults that some engine does not support count as none, so that
    they keep no request from it.

    Raises:
        UnknownModel: Engines are connected, but none serves this model, or a name is needed.
        NoEngine: No engine that could serve it is connected.
    """
    lives = [member.life for member in members]
    served = [(life.accepted_at, info) for life in lives if (info := life.served_model)]
    names = {info.name for _, info in served}
    if name in names or (not name and len(names) == 1):
        same = [(at, info) for at, info in served if not name or info.name == name]
        same.sort(key=itemgetter(0))
        return _combined([info for _, info in same])
    met = [life.model.name for life in lives if life.model is not None]
    if not served or name in met:
        which = f' that serves model "{name:.128}"' if name else ""
        raise NoEngine(
            f"no engine{which} is connected now", {"model": name}, retry_after=RETRY_SECONDS
        )
    known = ", ".join(f'"{served_name}"' for served_name in sorted(names))
    problem = f'model "{name:.128}" is not served' if name else "model is empty"
    raise UnknownModel(f"{problem}; models served: {known}", {"model": name})


def _combined(infos: Sequence[ModelInfo]) -> ModelInfo:
    """Returns one description for the engines of a model; the first was connected first."""
    first = infos[0]
    changes: dict[str, Any] = {}
    for field in ("max_model_len", "max_logprobs"):
        most = max(getattr(info, field) for info in infos)
        if most != getattr(first, field):
            changes[field] = most
    if any(info.supported_params != first.supported_params for info in infos):
        changes["supported_params"] = frozenset().union(*(info.supported_params for info in infos))
        demands = Demands.of(first.default_sampling_params)
        if demands is not None and not all(info.supports(demands) for info in infos):
            changes["default_sampling_params"] = SamplingParams()
    return replace(first, **changes) if changes else first


def check_same(request: TokenRequest, info: ModelInfo) -> None:
    """Refuses a model that is not the one that a request's prompt was tokenized for.

    Token IDs of one tokenizer mean nothing to a model with another.

    Raises:
        NoEngine: The name now stands for another model.
    """
    made_for = request.model_info
    if made_for is not info and made_for is not None and made_for.identity != info.identity:
        raise NoEngine(
            f'model "{info.name}" has changed since the request arrived; send the request again',
            {"model": info.name},
            retry_after=RETRY_SECONDS,
        )


def difference(newcomer: FleetMember, info: ModelInfo, members: Collection[FleetMember]) -> str:
    """Returns how an engine differs from others that serve a model of the same name, or ""."""
    for member in members:
        known = member.life.accepted_model
        if member is newcomer or known is None or known.name != info.name:
            continue
        for field in ("fingerprint", "tokenizer_sha256", "block_size", "vocab_size"):
            ours, theirs = getattr(known, field), getattr(info, field)
            if ours != theirs:
                return (
                    f'its model "{info.name}" has {field} {theirs!r}; '
                    f"engine {member.address} serves it with {ours!r}"
                )
    return ""


def other_defaults(newcomer: FleetMember, info: ModelInfo, members: Collection[FleetMember]) -> str:
    """Returns how an engine's defaults differ from others' of its model, or an empty string."""
    for member in members:
        known = member.life.accepted_model
        if member is newcomer or known is None or known.name != info.name:
            continue
        for name in DEFAULT_PARAMS:
            ours = getattr(known.default_sampling_params, name)
            theirs = getattr(info.default_sampling_params, name)
            if ours != theirs:
                return (
                    f"its default {name} is {_shown(theirs)}, "
                    f"that of engine {member.address} is {_shown(ours)}"
                )
    return ""


def _shown(value: float | None) -> str:
    return "unset" if value is None else shown_number(value)
