"""Step 6: blocks outlive their request, and a prompt that begins alike finds them by a hash.

From step 4: `PagedCache`. From step 5: `Engine`.
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from xxhash import xxh3_128_digest

from examples.guide.collision import ask_colliding_sums
from examples.guide.common import Answers, bar, chat, figure, text_with_facts
from examples.guide.step_01_forward import Model, load
from examples.guide.step_04_paged_kv import PagedCache, Sequence
from examples.guide.step_05_continuous_batching import Engine, Request
from examples.guide.trace import Trace


@dataclass(eq=False)
class Entry:
    """A full block that can be found: its tokens, and the entry of the block before it."""

    block: int
    parent: "Entry | None"
    tokens: list[int]


class PrefixCache(PagedCache):
    """Keeps full blocks findable; `free` is in order of reuse, the next one to be taken last."""

    digest_bytes = 16
    compares = True

    def __init__(self, model: Model, num_blocks: int, block_size: int = 16) -> None:
        super().__init__(model, num_blocks, block_size)
        self.entries: dict[bytes, Entry] = {}
        self.digests: dict[int, bytes] = {}  # Of each block that has an entry.
        self.num_owners: Counter[int] = Counter()
        self.num_found = 0  # Tokens.

    def chain(self, token_ids: list[int]) -> Iterator[tuple[bytes, list[int]]]:
        """Yields the digest of each full block, made of all tokens to its end, and its tokens."""
        digest = b""
        for end in range(self.block_size, len(token_ids) + 1, self.block_size):
            tokens = token_ids[end - self.block_size : end]
            digest = xxh3_128_digest(digest + array("i", tokens).tobytes())[: self.digest_bytes]
            yield digest, tokens

    def is_it(self, entry: Entry, parent: Entry | None, tokens: list[int]) -> bool:
        """Whether an entry is of these tokens behind that parent, and not only of equal digest."""
        return not self.compares or (entry.parent is parent and entry.tokens == tokens)

    def find(self, sequence: Sequence) -> None:
        """Gives a new sequence the blocks that it begins with, as far as they are there."""
        parent = None
        # The last token must be computed in any case, for the logits behind it.
        for digest, tokens in self.chain(sequence.token_ids[:-1]):
            entry = self.entries.get(digest)
            if entry is None or not self.is_it(entry, parent, tokens):
                break
            if not self.num_owners[entry.block]:
                self.free.remove(entry.block)
            self.num_owners[entry.block] += 1
            sequence.block_table.append(entry.block)
            parent = entry
        sequence.num_computed = len(sequence.block_table) * self.block_size
        self.num_found += sequence.num_computed

    def register(self, sequence: Sequence) -> None:
        """Makes the full blocks of a sequence findable, unless others have the same already."""
        parent = None
        chain = self.chain(sequence.token_ids[: sequence.num_computed])
        for block, (digest, tokens) in zip(sequence.block_table, chain, strict=False):
            entry = self.entries.get(digest)
            if entry is None or not self.is_it(entry, parent, tokens):
                if entry is not None:
                    del self.digests[entry.block]
                entry = self.entries[digest] = Entry(block, parent, tokens)
                self.digests[block] = digest
            parent = entry

    def compute(self, model: Model, rows: list[tuple[Sequence, int]]) -> list[int]:
        """As before; what is full then can be found."""
        tokens = super().compute(model, rows)
        for sequence, _ in rows:
            self.register(sequence)
        return tokens

    def take(self) -> int:
        """Takes the free block that will be missed least; it can no longer be found."""
        block = super().take()
        if block in self.digests:
            del self.entries[self.digests.pop(block)]
        self.num_owners[block] = 1
        return block

    def release(self, sequence: Sequence) -> None:
        """Frees the blocks that nobody else has, the end of the text for an earlier reuse."""
        for block in reversed(sequence.block_table):
            self.num_owners[block] -= 1
            if not self.num_owners[block]:
                self.free.insert(0 if block in self.digests else len(self.free), block)
        sequence.block_table, sequence.num_computed = [], 0


class CachingEngine(Engine):
    """An engine whose requests begin with what the cache has of them."""

    cache: PrefixCache

    def __init__(self, model: Model, num_blocks: int, **options: int) -> None:
        super().__init__(model, num_blocks, **options)
        self.cache = PrefixCache(model, num_blocks, self.cache.block_size)

    def start(self, request: Request) -> None:
        """Lets a request run, with the blocks that are there already."""
        super().start(request)
        self.cache.find(request)


def main() -> Answers:
    """Asks about one text; then two questions of equal hash; then about more texts than fit."""
    model = load()
    text = text_with_facts(8)
    questions = ("What is Mara's code?", "Where does Omar live?") * 2
    prompts = [chat(f"{text}\n\n{question}") for question in questions]
    plain, caching = Trace(Engine(model, 64)), Trace(CachingEngine(model, 64))
    for trace in (plain, caching):
        trace.ask(prompts)
    figure("tokens computed without prefix caching", plain.num_computed)
    figure("tokens computed with it", caching.num_computed)
    for compares in (False, True):
        engine = CachingEngine(model, 64)
        engine.cache.digest_bytes, engine.cache.compares = 1, compares
        print("\na hash of 8 bits,", "and tokens compared:" if compares else "and nothing else:")
        ask_colliding_sums(engine)
    print("\nprompt tokens found, of texts A B A C A B A D A B A C A B A D:")
    for num_blocks in (8, 16, 32):
        trace = Trace(engine := CachingEngine(model, num_blocks))
        trace.ask([chat(f"Text {name}. {text}") for name in "ABACABADABACABAD"], max_tokens=1)
        rate = engine.cache.num_found / sum(map(len, trace.prompts))
        bar(f"{num_blocks} blocks", rate, 1, f"{rate:.0%}")
    return caching.answers_by_prompt()


if __name__ == "__main__":
    main()
