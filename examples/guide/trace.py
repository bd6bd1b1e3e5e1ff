"""What an engine did, step by step: answers, tokens between tokens, and a picture of the time."""

from typing import TYPE_CHECKING

from examples.guide.common import Answers

if TYPE_CHECKING:
    from examples.guide.step_05_continuous_batching import Engine


class Trace:
    """Runs an engine and keeps what each step computed and gave.

    Attributes:
        prompts: Of each request, in order of its ID.
        answers: The tokens that each got.
        computed: Of each step, how many tokens of which request it computed.
        given: Of each step, the requests that got a token.
    """

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        self.prompts: list[list[int]] = []
        self.answers: list[list[int]] = []
        self.computed: list[dict[int, int]] = []
        self.given: list[set[int]] = []

    def add(self, prompt: list[int], max_tokens: int = 64) -> None:
        """Adds a request to the engine."""
        self.engine.add(prompt, max_tokens)
        self.prompts.append(prompt)
        self.answers.append([])

    def step(self) -> None:
        """Lets the engine do a step."""
        tokens = self.engine.step()
        for request_id, token in tokens:
            self.answers[request_id].append(token)
        self.computed.append(self.engine.computed)
        self.given.append({request_id for request_id, _ in tokens})

    def run(self) -> None:
        """Lets the engine do steps until nothing is left to do."""
        while not self.engine.is_idle:
            self.step()

    def ask(self, prompts: list[list[int]], max_tokens: int = 64) -> None:
        """Has prompts answered one after the other."""
        for prompt in prompts:
            self.add(prompt, max_tokens)
            self.run()

    def answers_by_prompt(self) -> Answers:
        """Returns all answers by their prompts."""
        return {tuple(p): a for p, a in zip(self.prompts, self.answers, strict=True)}

    @property
    def num_computed(self) -> int:
        """Tokens that all steps computed."""
        return sum(sum(computed.values()) for computed in self.computed)

    def waits(self, request_id: int) -> list[tuple[int, int]]:
        """Returns how many steps each token of a request took, and how many tokens, of whom ever.

        The first counts from the step in which something of the request is computed first.
        """
        waits, steps, tokens = [], 0, 0
        for computed, given in zip(self.computed, self.given, strict=True):
            if waits or steps or request_id in computed:
                steps += 1
                tokens += sum(computed.values())
            if request_id in given:
                waits.append((steps, tokens))
                steps = tokens = 0
        return waits

    def draw(self, names: list[str], tokens_per_column: int, steps: slice) -> None:
        """Prints some steps as a line for each request: ▒ its prompt is computed, █ a token.

        Args:
            names: Of the requests.
            tokens_per_column: A step is as wide as what it computes.
            steps: Those to draw.
        """
        drawn = [*zip(self.computed, self.given, strict=True)][steps]
        for request_id, name in enumerate(names):
            line = ""
            for computed, given in drawn:
                width = -(-sum(computed.values()) // tokens_per_column)
                is_prompt = computed.get(request_id, 0) > 1
                end = "█" if request_id in given else "▒" if is_prompt else "·"
                line += ("▒" if is_prompt else "·") * (width - 1) + end
            print(f"{name:>10} {line}")
