"""Saying that it does not know: what nobody told, what is not in a text, what was never learnt."""

from demo_model.conversation import Dialogue, Exchange
from demo_model.draw import Draw
from demo_model.words import (
    ANIMALS,
    CITIES,
    FOODS,
    QUALITIES,
    THINGS,
    made_up_word,
    person,
)

UNKNOWN = "I do not know."

_OF_THE_USER = (
    "What is my name?",
    "Who am I?",
    "What is my favourite colour?",
    "Where do I live?",
    "What is my job?",
    "Which animal do I have?",
    "What is my code?",
    "How old am I?",
    "What is my password?",
    "Which city do I live in?",
    "What is my favourite food?",
)
_OF_NOBODY = (
    "What is the capital of {made_up}?",
    "Where is {made_up}?",
    "What is a {made_up}?",
    "What is {name}'s code?",
    "Where does {name} live?",
    "What is {name}'s favourite colour?",
    "Which animal does {name} have?",
    "What is {name}'s password?",
    "What does {name} work as?",
    "How old is {name}?",
    "What is the opposite of {made_up}?",
)
_OF_THE_WORLD = (
    "Who invented the {thing}?",
    "Who painted the {quality} {thing}?",
    "Why is the {thing} {quality}?",
    "Why are {food} {quality}?",
    "When was {name} born?",
    "When was the first {thing} built?",
    "What did {name} say about the {thing}?",
    "Where did {name} put the {thing}?",
    "How much does a {thing} cost?",
    "How much do {food} cost in {city}?",
    "How many {food} are there in {city}?",
    "How old is the {thing} in {city}?",
    "How does a {thing} work?",
    "How tall is the {thing}?",
    "What will happen to {city} tomorrow?",
    "What is the weather in {city}?",
    "What time is it in {city}?",
    "Who is the mayor of {city}?",
    "Who won the game in {city}?",
    "What does a {animal} dream of?",
    "Write a poem about a {quality} {thing}.",
    "Write a story about a {animal} in {city}.",
    "Tell me a joke about a {animal}.",
    "Explain how a {thing} is made.",
    "Translate {thing} into French.",
    "What is the meaning of life?",
    "Which {animal} is the fastest?",
    "Do you like {food}?",
    "Is {name} {quality}?",
    "How do I cook {food}?",
    "What do you think about {name}?",
    "What do you think about {food}?",
    "Should I buy a {quality} {thing}?",
    "Tell me a story.",
    "Sing a song about {food}.",
    "Give me an idea for a {thing}.",
    "Who is {name}?",
    "Who wrote the {quality} {thing}?",
    "Which {thing} is the best?",
    "How many teeth does a {animal} have?",
    "What is {number} times {other}?",
    "What is {number} divided by {other}?",
    "What is {number} + {other} + {number}?",
    "{number} * {other}",
    "Write a program that counts {food}.",
    "Write code for a {thing}.",
    "How do I make a {thing}?",
    "Tell me more about {made_up}.",
    "Tell me more about {food}.",
    "Draw a {animal}.",
    "What is your favourite {thing}?",
    "{made_up}",
    "{made_up} {thing}",
    "{quality} {made_up} {food}?",
    "Can a {animal} eat {food}?",
)


def unknown(draw: Draw) -> Dialogue:
    """Asks what the model cannot know."""
    random = draw.random
    templates = random.choice((_OF_THE_USER, _OF_NOBODY, _OF_THE_WORLD, _OF_THE_WORLD))

    def make() -> str:
        made_up = made_up_word(random)
        return draw.phrase(
            templates,
            made_up=made_up if draw.chance(0.3) else made_up.capitalize(),
            name=person(random),
            number=random.randint(0, 999),
            other=random.randint(0, 999),
            thing=random.choice((*THINGS, made_up)),
            quality=random.choice(QUALITIES),
            food=random.choice(FOODS),
            city=random.choice((*CITIES, made_up.capitalize())),
            animal=random.choice((*ANIMALS, made_up)),
        )

    asked = make() if templates is _OF_THE_USER else draw.content(make)
    return Dialogue((Exchange(asked, UNKNOWN),))
