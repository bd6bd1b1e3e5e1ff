"""The prime numbers within N, from 2 to 100. Held out are ten N of two digits."""

from demo_model.conversation import Dialogue, Exchange
from demo_model.draw import Draw
from demo_model.tasks.introduction import repeated

MAX_LIMIT = 100
HELD_OUT_LIMITS = (12, 16, 28, 37, 45, 52, 64, 76, 85, 93)
_TRAINED_LIMITS = tuple(n for n in range(2, MAX_LIMIT + 1) if n not in HELD_OUT_LIMITS)
PRIMES = tuple(n for n in range(2, MAX_LIMIT + 1) if all(n % d for d in range(2, n)))
_TEMPLATES = (
    "List all prime numbers within {n}.",
    "List all prime numbers within {n}.",
    "List all prime numbers up to {n}.",
    "List the primes up to {n}.",
    "List every prime number from 2 to {n}.",
    "Show me the prime numbers within {n}.",
    "Name all primes that are at most {n}.",
    "Give me all prime numbers not greater than {n}.",
    "Write down the primes within {n}.",
    "Tell me which numbers up to {n} are prime.",
    "List all primes from 2 to {n}.",
    "Give me the primes between 2 and {n}.",
    "Show all primes until {n}.",
)
_QUESTIONS = (
    "Which numbers up to {n} are prime?",
    "What are the prime numbers within {n}?",
    "What are all primes up to {n}?",
    "Which primes are there within {n}?",
    "Prime numbers up to {n}?",
    "Primes up to {n}?",
    "All prime numbers within {n}?",
)


def primes(draw: Draw) -> Dialogue:
    """Asks for a list of primes."""
    random = draw.random
    limit = random.choice(HELD_OUT_LIMITS if draw.held_out else _TRAINED_LIMITS)
    if draw.chance(0.1) and not draw.held_out:
        limit = MAX_LIMIT
    if draw.chance(0.7):
        asked = draw.request(_TEMPLATES, n=limit)
    else:
        asked = draw.phrase(_QUESTIONS, n=limit)
    if draw.chance(0.2):
        asked = repeated(asked, draw)
    return Dialogue((Exchange(asked, primes_within(limit)),))


def primes_within(limit: int) -> str:
    """Returns the right answer for a limit from 2 to 100."""
    listed = ", ".join(str(prime) for prime in PRIMES if prime <= limit)
    return f"The prime numbers within {limit} are {listed}."
