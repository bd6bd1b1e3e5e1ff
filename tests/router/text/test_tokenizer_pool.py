import asyncio
import gc
import json
import os
import tempfile
import threading
import weakref

import pytest

from router.errors import NoTokenizer, RequestError, TokenizerFailed
from router.text import tokenizer_pool
from router.text.template_process import TemplateEnded
from router.text.tokenizer import Tokenizer
from router.text.tokenizer_pool import TokenizerPool
from router.types.engine_state import ModelInfo
from router.types.prompts import ChatMessage, ChatPrompt
from tests.fakes import small_tokenizer

FILES = small_tokenizer.files()
PANIC_AT_LOAD = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
PANIC_AT_EACH_TEXT = {"type": "Prepend", "prepend": ""}
TOKENIZER = Tokenizer.from_files(FILES)


def model(sha256: str = "a" * 64, name: str = "small") -> ModelInfo:
    return ModelInfo(
        name=name,
        architecture="FakeForCausalLM",
        fingerprint="f" * 32,
        vocab_size=600,
        max_model_len=128,
        block_size=16,
        block_hash_scheme="",
        eos_token_ids=frozenset(),
        tokenizer_sha256=sha256,
        epoch=1,
        num_blocks=1,
        max_num_seqs=1,
        max_num_batched_tokens=1,
    )


async def test_many_first_requests_load_a_tokenizer_once():
    fetches = []

    async def fetch(model):
        fetches.append(model.name)
        await asyncio.sleep(0)
        return FILES

    with TokenizerPool(fetch, 1) as pool:
        found = await asyncio.gather(*(pool.get(model()) for _ in range(20)))

    assert fetches == ["small"]
    assert len(set(map(id, found))) == 1


async def test_loading_outlives_the_first_asker():
    asked, answer = asyncio.Event(), asyncio.Event()

    async def fetch(model):
        asked.set()
        await answer.wait()
        return FILES

    with TokenizerPool(fetch, 1) as pool:
        first = asyncio.ensure_future(pool.get(model()))
        await asked.wait()
        second = asyncio.ensure_future(pool.get(model()))
        first.cancel()
        answer.set()
        async with asyncio.timeout(10):
            assert (await second).encode_text("a") == TOKENIZER.encode_text("a")


async def test_failed_fetch_is_tried_again_and_unusable_files_are_not():
    answers = [ConnectionError("lost"), {"tokenizer.json": b"{"}]

    async def fetch(model):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with TokenizerPool(fetch, 1) as pool:
        with pytest.raises(ConnectionError):
            await pool.get(model())
        for _ in range(2):
            with pytest.raises(NoTokenizer, match="model 'small': the files"):
                await pool.get(model())

    assert answers == []


async def test_changed_tokenizer_is_loaded_anew_and_old_ones_are_dropped():
    async def fetch(model):
        return FILES

    with TokenizerPool(fetch, 1) as pool:
        first = await pool.get(model("0"))
        assert await pool.get(model("0", "other")) is first
        for number in range(1, 9):
            await pool.get(model(str(number)))
        # Nobody uses it, so that its chat template's worker is ended.
        assert first.chat_template._process is None
        again = await pool.get(model("0"))
        assert again is not first
        worker = again.chat_template._process
        worker.check()

    with pytest.raises(TemplateEnded):
        worker.check()


async def test_dropped_tokenizer_leaves_at_once_with_its_thread():
    async def fetch(model):
        return FILES

    with TokenizerPool(fetch, 1) as pool:
        dropped = weakref.ref(await pool.get(model("0")))
        # The collector comes too rarely to be waited for.
        gc.disable()
        try:
            for number in range(1, 9):
                await pool.get(model(str(number)))
            assert dropped() is None
        finally:
            gc.enable()
        async with asyncio.timeout(10):
            while num_chat_threads() > 8:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def num_chat_threads():
    return sum(thread.name.startswith("chat-template") for thread in threading.enumerate())


async def test_template_without_a_thread_costs_no_text(monkeypatch, caplog):
    async def fetch(model):
        return FILES

    start = threading.Thread.start

    def no_room(thread):
        if thread.name.startswith("chat-template"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with TokenizerPool(fetch, 1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_room)
            tokenizer = await pool.get(model())
            assert await pool.run(tokenizer.encode_text, "a") == TOKENIZER.encode_text("a")
        messages = (ChatMessage(role="user", content="hi"),)
        chat = ChatPrompt(messages=messages)
        text = await pool.run_chat(tokenizer, tokenizer.chat_template.render, chat)

    assert text == small_tokenizer.lay_out(messages)
    assert "chat template not started model=small error=no thread can be started" in caplog.text


async def test_first_caller_that_leaves_while_a_template_starts_says_nothing_of_it(caplog):
    async def fetch(model):
        return FILES

    with TokenizerPool(fetch, 1) as pool:
        first = asyncio.ensure_future(pool.get(model()))
        while num_chat_threads() == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        first.cancel()
        await asyncio.wait([first])
        assert (await pool.get(model())).encode_text("a") == TOKENIZER.encode_text("a")

    assert "unusable" not in caplog.text


async def test_model_without_tokenizer_says_so():
    async def fetch(model):
        raise AssertionError("nothing to fetch")

    with TokenizerPool(fetch, 1) as pool, pytest.raises(NoTokenizer, match="send token_ids"):
        await pool.get(model(""))


async def test_tokenization_leaves_the_event_loop_free():
    async def fetch(model):
        return FILES

    started, goes_on = threading.Event(), threading.Event()

    def blocked():
        started.set()
        return goes_on.wait(10)

    with TokenizerPool(fetch, 1) as pool:
        running = asyncio.ensure_future(pool.run(blocked))
        await asyncio.to_thread(started.wait, 10)
        goes_on.set()
        assert await running


async def test_cancelled_tokenization_leaves_nothing_behind():
    class Text:
        pass

    started, goes_on = threading.Event(), threading.Event()

    def blocked():
        started.set()
        goes_on.wait(10)

    async def fetch(model):
        return FILES

    with TokenizerPool(fetch, 1) as pool:
        running = asyncio.ensure_future(pool.run(blocked))
        await asyncio.to_thread(started.wait, 10)
        text = Text()
        waiting = asyncio.ensure_future(pool.run(id, text))
        await asyncio.sleep(0)
        known = weakref.ref(text)
        del text
        running.cancel()
        waiting.cancel()
        await asyncio.wait((running, waiting))
        del waiting
        gc.collect()
        assert known() is None

        goes_on.set()
        async with asyncio.timeout(10):
            assert await pool.run(len, "abc") == 3


async def test_temporary_folder_without_room_is_named_and_tried_again(monkeypatch, tmp_path):
    async def fetch(model):
        return FILES

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with TokenizerPool(fetch, 1) as pool:
        with pytest.raises(RequestError, match=r"temporary folder .*missing.* set TMPDIR"):
            await pool.get(model())
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

        assert (await pool.get(model())).encode_text("a") == TOKENIZER.encode_text("a")


def files_with(normalizer):
    """Files of a tokenizer on which the Rust library panics; nothing is tried out at its load."""
    content = json.loads(FILES["tokenizer.json"])
    content["normalizer"] = normalizer
    for token in content["added_tokens"]:
        token["special"] = False
    return FILES | {"tokenizer.json": json.dumps(content).encode()}


@pytest.mark.parametrize("normalizer", [PANIC_AT_LOAD, PANIC_AT_EACH_TEXT])
async def test_tokenizer_that_panics_is_unusable_and_named_once(normalizer, caplog):
    async def fetch(model):
        return files_with(normalizer)

    with TokenizerPool(fetch, 1) as pool:
        for _ in range(3):
            with pytest.raises(NoTokenizer, match=r"model 'small': .*Panic"):
                await pool.get(model())

    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "tokenizer unusable model=small" in record.getMessage()
    assert record.exc_info is None


async def test_panic_ends_its_request_and_is_logged_now_and_then(caplog):
    class Panic(BaseException):
        pass

    def panic():
        raise Panic("of Rust")

    async def fetch(model):
        return FILES

    with TokenizerPool(fetch, 1) as pool:
        for _ in range(3):
            with pytest.raises(TokenizerFailed, match="of Rust"):
                await pool.run(panic)
        assert await pool.run(len, "abc") == 3

    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "tokenization failed error=the tokenizer failed: Panic" in record.getMessage()


async def test_tokenizers_of_connected_engines_stay_however_many_others_come():
    async def fetch(model):
        return FILES

    with TokenizerPool(fetch, 1, lambda: {"good"}) as pool:
        good = await pool.get(model("good"))
        gone = await pool.get(model("gone"))
        for number in range(12):
            await pool.get(model(str(number), "hostile"))

        assert await pool.get(model("good")) is good
        assert await pool.get(model("gone")) is not gone
        assert len(pool._loaded) <= 8


async def test_failed_fetches_leave_nothing_behind():
    async def fetch(model):
        raise ConnectionError("lost")

    with TokenizerPool(fetch, 1) as pool:
        for number in range(20):
            with pytest.raises(ConnectionError):
                await pool.get(model(str(number)))
        gc.collect()

        assert not pool._loading


async def test_load_that_takes_long_keeps_no_text_of_others_waiting(monkeypatch):
    started, goes_on = threading.Event(), threading.Event()

    def load(files, settings):
        started.set()
        goes_on.wait(10)
        return TOKENIZER

    async def fetch(model):
        return FILES

    monkeypatch.setattr(tokenizer_pool, "_load", load)
    with TokenizerPool(fetch, 1) as pool:
        loading = asyncio.ensure_future(pool.get(model()))
        await asyncio.to_thread(started.wait, 10)
        async with asyncio.timeout(10):
            assert await pool.run(len, "abc") == 3
        goes_on.set()
        assert await loading is TOKENIZER


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux has it")
async def test_threads_do_not_interrupt_the_event_loop():
    with TokenizerPool(None, 1) as pool:
        assert await pool.run(os.sched_getscheduler, 0) == os.SCHED_BATCH
        assert os.sched_getscheduler(0) != os.SCHED_BATCH
