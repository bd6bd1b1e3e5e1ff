"""A small set of facts. They have to be learnt by heart, so held out are facts in a phrasing."""

from demo_model.conversation import Dialogue, Exchange
from demo_model.draw import Draw

_CAPITALS = {
    "Austria": "Vienna",
    "Belgium": "Brussels",
    "Canada": "Ottawa",
    "Cuba": "Havana",
    "Denmark": "Copenhagen",
    "Egypt": "Cairo",
    "England": "London",
    "Finland": "Helsinki",
    "France": "Paris",
    "Germany": "Berlin",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "India": "New Delhi",
    "Indonesia": "Jakarta",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Senegal": "Dakar",
    "Spain": "Madrid",
    "Sweden": "Stockholm",
    "Vietnam": "Hanoi",
}
_OPPOSITES = (
    ("hot", "cold"),
    ("big", "small"),
    ("fast", "slow"),
    ("light", "dark"),
    ("old", "new"),
    ("wet", "dry"),
    ("hard", "soft"),
    ("happy", "sad"),
    ("high", "low"),
    ("full", "empty"),
    ("rich", "poor"),
    ("near", "far"),
    ("open", "closed"),
    ("early", "late"),
    ("up", "down"),
    ("left", "right"),
    ("day", "night"),
    ("good", "bad"),
)
_NUMBERS_OF = {
    "days are in a week": "There are 7 days in a week.",
    "months are in a year": "There are 12 months in a year.",
    "hours are in a day": "There are 24 hours in a day.",
    "minutes are in an hour": "There are 60 minutes in an hour.",
    "seconds are in a minute": "There are 60 seconds in a minute.",
    "legs does a spider have": "A spider has 8 legs.",
    "legs does a horse have": "A horse has 4 legs.",
    "legs does an ant have": "An ant has 6 legs.",
    "legs does a cat have": "A cat has 4 legs.",
    "legs does a dog have": "A dog has 4 legs.",
    "legs does a duck have": "A duck has 2 legs.",
    "wheels does a car have": "A car has 4 wheels.",
    "wheels does a bicycle have": "A bicycle has 2 wheels.",
    "sides does a triangle have": "A triangle has 3 sides.",
    "sides does a square have": "A square has 4 sides.",
    "letters are in the alphabet": "There are 26 letters in the alphabet.",
    "planets are in the solar system": "There are 8 planets in the solar system.",
    "cents are in a dollar": "There are 100 cents in a dollar.",
}
_COLOUR_OF = {
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "blood": "red",
    "the sky": "blue",
    "a lemon": "yellow",
    "a carrot": "orange",
    "a raven": "black",
    "chocolate": "brown",
    "a ripe tomato": "red",
    "milk": "white",
    "the sun": "yellow",
}
_WEEK = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_YEAR = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def facts(draw: Draw) -> Dialogue:
    """Asks for one of the facts."""
    return draw.content(lambda: Dialogue((draw.random.choice(_KINDS)(draw),)))


def _capital(draw: Draw) -> Exchange:
    country, capital = draw.random.choice(list(_CAPITALS.items()))
    if draw.chance(0.3):
        templates: tuple[str, ...] = (
            "{capital} is the capital of which country?",
            "Of which country is {capital} the capital?",
            "Which country has {capital} as its capital?",
        )
        asked = draw.phrase(templates, capital=capital)
        return Exchange(asked, f"{capital} is the capital of {country}.")
    templates = (
        "What is the capital of {country}?",
        "Which city is the capital of {country}?",
        "What is {country}'s capital?",
        "Name the capital of {country}.",
        "Tell me the capital of {country}.",
        "Which capital does {country} have?",
        "Do you know the capital of {country}?",
        "capital of {country}",
    )
    return Exchange(
        draw.phrase(templates, country=country), f"The capital of {country} is {capital}."
    )


def _opposite(draw: Draw) -> Exchange:
    pair = draw.random.choice(_OPPOSITES)
    word, opposite = pair if draw.chance(0.5) else pair[::-1]
    templates = (
        "What is the opposite of {word}?",
        'What is the opposite of "{word}"?',
        "Tell me the opposite of {word}.",
        "Which word is the opposite of {word}?",
        "Name the opposite of {word}.",
        "opposite of {word}",
    )
    return Exchange(draw.phrase(templates, word=word), f"The opposite of {word} is {opposite}.")


def _number(draw: Draw) -> Exchange:
    asked, answer = draw.random.choice(list(_NUMBERS_OF.items()))
    templates = (
        "How many {asked}?",
        "Do you know how many {asked}?",
        "Tell me: how many {asked}?",
        "I wonder how many {asked}.",
        "Say how many {asked}.",
    )
    return Exchange(draw.phrase(templates, asked=asked), answer)


def _colour(draw: Draw) -> Exchange:
    thing, colour = draw.random.choice(list(_COLOUR_OF.items()))
    templates = (
        "What colour is {thing}?",
        "Which colour is {thing}?",
        "What is the colour of {thing}?",
        "Tell me the colour of {thing}.",
        "Which colour does {thing} have?",
    )
    answer = f"{thing[0].upper()}{thing[1:]} is {colour}."
    return Exchange(draw.phrase(templates, thing=thing), answer)


def _neighbour(draw: Draw) -> Exchange:
    names = draw.random.choice((_WEEK, _YEAR))
    unit = "day" if names is _WEEK else "month"
    index = draw.random.randrange(len(names))
    word = draw.random.choice(("after", "before"))
    neighbour = names[(index + (1 if word == "after" else -1)) % len(names)]
    templates = (
        "Which {unit} comes {word} {name}?",
        "What {unit} comes {word} {name}?",
        "Name the {unit} {word} {name}.",
        "Tell me the {unit} {word} {name}.",
        "What is the {unit} {word} {name}?",
    )
    asked = draw.phrase(templates, unit=unit, word=word, name=names[index])
    return Exchange(asked, f"{neighbour} comes {word} {names[index]}.")


_KINDS = (_capital, _capital, _opposite, _number, _colour, _neighbour)
