"""Two tenants see nothing of each other's prefixes, neither by placement nor by cached tokens."""

import asyncio
from contextlib import aclosing

import pytest

from protos.wire.sampling_params import SamplingParams
from router.access.keyring import Keyring
from router.request.pipeline import Bounds, Pipeline
from router.server.metrics import RouterMetrics
from router.text.tokenizer_pool import TokenizerPool
from tests.router.access.key_files import KEY, OTHER, entry, write
from tests.router.fleets import CONFIG, Observer, fleet_of, until
from tests.router.pipelines import request, tokens

FRIEND = "pgs_" + "f" * 43
PROMPT = tokens(*range(64))
BOUNDS = Bounds(
    max_concurrent_requests=8,
    max_prompt_bytes=1000,
    max_request_bytes=1000,
    max_queued_prompt_tokens=1000,
)


@pytest.fixture
def keyring(tmp_path):
    keys = [entry(KEY, "a", tenant="us"), entry(FRIEND, "f", tenant="us"), entry(OTHER, "b")]
    return Keyring(write(tmp_path / "keys", *keys))


async def test_prefixes_are_shared_within_a_tenant_only(keyring):
    observer = Observer()
    async with fleet_of(CONFIG, CONFIG, observers=observer) as (fleet, _):
        with TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers:
            pipeline = Pipeline(fleet, tokenizers, RouterMetrics(), BOUNDS)

            async def num_cached(key, cache_salt=""):
                """Returns the cached tokens of a prompt: found, predicted, and the most of all."""
                asked = request(
                    PROMPT,
                    model="",
                    caller=None if key is None else keyring.of_key(key),
                    cache_salt=cache_salt,
                    sampling_params=SamplingParams(max_tokens=1, temperature=0.0),
                )
                num_blocks = fleet.statistics().index.num_entries
                async with asyncio.timeout(10), aclosing(pipeline.generate(asked)) as deltas:
                    first, *_ = [delta async for delta in deltas]
                placed = observer.placed[-1]
                if not first.admission.num_cached_tokens:
                    await until(lambda: fleet.statistics().index.num_entries >= num_blocks + 16)
                return (
                    first.admission.num_cached_tokens,
                    placed.num_predicted_cached_tokens,
                    placed.num_best_cached_tokens,
                )

            unseen = (0, 0, 0)
            assert await num_cached(KEY) == unseen
            assert all(await num_cached(KEY))
            assert all(await num_cached(FRIEND))
            assert await num_cached(OTHER) == unseen
            # Not even by the salt that engines know.
            assert await num_cached(OTHER, keyring.of_key(KEY).cache_salt("")) == unseen
            assert await num_cached(None) == unseen
            # A tenant's own salts separate its prefixes further.
            assert await num_cached(KEY, "x") == unseen
            assert all(await num_cached(FRIEND, "x"))
