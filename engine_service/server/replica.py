"""One loaded model and everything that the RPCs need from it."""

from dataclasses import dataclass

from engine_service.config import ServerOptions
from engine_service.core.limits import Limits
from engine_service.core.types import EngineInfo
from engine_service.server.cache_log import CacheLog
from engine_service.server.core_client import CoreClient
from engine_service.server.load_meter import LoadMeter
from engine_service.server.tokenizer_files import TokenizerFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """The parts that serve requests after start-up."""

    info: EngineInfo
    limits: Limits
    client: CoreClient
    cache_log: CacheLog
    load_meter: LoadMeter
    tokenizer: TokenizerFiles
    options: ServerOptions
