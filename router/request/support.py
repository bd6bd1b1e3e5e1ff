"""Says why no engine of a model can take a request with these parameters."""

from collections.abc import Sequence

from protos.wire.reason import Reason
from protos.wire.sampling_params import SamplingParams, unsupported
from router.errors import InvalidRequest
from router.types.engine_state import Demands, ModelInfo


def refusal(params: SamplingParams, models: Sequence[ModelInfo]) -> InvalidRequest | None:
    """Returns the error for parameters that no engine supports; None if some engine does.

    Args:
        params: The request's parameters.
        models: What each engine of the request's model reports, at least one.
    """
    demands = Demands.of(params)
    if demands is None or any(model.supports(demands) for model in models):
        return None
    able = [model for model in models if demands.params <= model.supported_params]
    if able:
        return _too_many_logprobs(params, max(model.max_logprobs for model in able))
    known = frozenset[str]().union(*(model.supported_params for model in models))
    together = ""
    if unsupported(params, known) is None:
        # Each parameter by itself has an engine. That with the fewest gaps is the most helpful one.
        best = min(models, key=lambda model: len(demands.params - model.supported_params))
        known, together = best.supported_params, " together with the others of this request"
    fault = unsupported(params, known)
    assert fault is not None, "some demand is missing in every engine"
    return InvalidRequest(
        f"sampling_params.{fault.field} is {fault.value}, but no engine of model "
        f'"{models[0].name}" supports the parameter{together}',
        {"field": fault.field, "value": fault.value, "supported": ",".join(sorted(known))},
        reason=Reason.UNSUPPORTED_PARAMETER,
    )


def _too_many_logprobs(params: SamplingParams, most: int) -> InvalidRequest:
    field = "logprobs" if (params.logprobs or 0) > most else "prompt_logprobs"
    value, bounds = str(getattr(params, field)), f"0 to {most}"
    return InvalidRequest(
        f"sampling_params.{field} is {value}, outside {bounds}, the most of any engine",
        {"field": field, "value": value, "bounds": bounds},
        reason=Reason.BAD_SAMPLING_PARAMS,
    )
