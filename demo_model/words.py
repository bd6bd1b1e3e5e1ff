"""The words that the synthetic conversations are made of, and words made up on the spot.

No job, animal, thing or quality begins with a vowel, so that "a" is right before each.
"""

from random import Random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words("""
    Ada Adam Agnes Albert Alice Alma Amir Anna Anton Arjun Arthur Bela Ben Bilal Boris Bruno Carla
    Carmen Cecil Chen Clara Daniel Daria David Diego Dina Edgar Elena Elias Emil Emma Erik Esther
    Eva Farid Felix Flora Frank Freya Gina Greta Gustav Hana Hans Hassan Helen Henry Hugo Ida Igor
    Ines Ivan Iris Jakob Jana Joan Jonas Jorge Julia Kaito Karl Kate Kofi Lara Lars Laura Lena Leo
    Lina Lola Louis Lucas Maja Mara Marco Maria Max Mei Mila Mira Mona Nadia Nico Nina Noah Nora
    Olga Oscar Otto Paul Petra Priya Quinn Ravi Rita Rosa Ruth Samir Sara Simon Sofia Stella Tara
    Theo Tina Tom Uma Vera Victor Walter Wanda Yara Yusuf Zoe
""")

CITIES = _words("""
    Athens Berlin Bergen Boston Cairo Cardiff Chicago Cork Dakar Delhi Denver Dublin Geneva Genoa
    Ghent Hanoi Havana Istanbul Jakarta Kyoto Lagos Leeds Lima Lisbon London Lyon Madrid Manila
    Milan Munich Nairobi Naples Osaka Oslo Oxford Paris Porto Prague Quito Riga Rome Salem Seoul
    Seville Sofia Sydney Tokyo Toronto Turin Utrecht Venice Vienna Warsaw York Zurich
""")

COLOURS = _words("""
    amber black blue bronze brown coral crimson gold green grey indigo ivory olive orange pink
    purple red silver teal turquoise violet white yellow
""")

JOBS = _words("""
    baker barber builder carpenter chemist cook dancer dentist doctor driver farmer gardener judge
    lawyer librarian mechanic miner musician nurse painter pilot plumber potter sailor singer
    surgeon tailor teacher waiter weaver writer
""")

ANIMALS = _words("""
    badger bear beaver camel cat cow crow deer dog donkey duck falcon ferret fox frog goat goose
    hamster hare hawk hedgehog horse lizard mole monkey mouse panda parrot pigeon pony rabbit raven
    seal sheep snail spider squirrel swan tiger toad turtle wolf zebra
""")

FOODS = _words("""
    almonds apples apricots bananas beans bread butter cake carrots cheese cherries chocolate corn
    dates figs grapes honey lemons lentils mangoes melons mushrooms noodles nuts olives onions
    oranges pasta peaches pears peas pepper pizza plums potatoes rice salad soup spinach tomatoes
""")

THINGS = _words("""
    balloon barn basket bell bench blanket boat book bottle bowl box bridge broom brush bucket
    button cabin cable candle canoe canvas carpet cart castle chain chair chest clock cloud coat
    coin comb compass cottage cradle crown cup curtain desk door drawer drum fence ferry field flag
    flute forest fountain gate glass globe glove guitar hammer harbour hat helmet hill hook house
    jacket jar jewel jug kettle key kitchen kite knife ladder lake lamp lantern leaf letter
    lighthouse lock map market mast meadow medal mill mirror mountain nail needle net notebook
    paddle paper pencil piano picture pillow pipe plate pocket pond quilt radio rail ribbon ring
    river road roof rope sail scarf school shelf ship shoe signal spoon stable stairs stamp statue
    stone stove street sword table telescope temple tent thread ticket tower train tray tree trumpet
    tunnel valley vase violin wagon wall wallet watch wheel whistle window wire yard
""")

QUALITIES = _words("""
    bitter bold brave bright broad broken busy calm careful cheap clean clear clever cold cool cosy
    crooked curious damp dark deep distant dry dull dusty faint fair famous fancy fast fine flat
    fragile fresh friendly gentle giant golden grand happy hard heavy hidden hollow huge humble kind
    large late lazy light little lonely long loud lovely lucky mild modern narrow neat new noisy
    patient plain polite poor proud pure quick quiet rare rough round rusty sad safe sharp shiny
    short silent simple slow small smooth soft solid sour steep still strange strong sunny sweet
    tall tame thick thin tidy tiny tired vast warm weak wet wide wild wise wooden young
""")

ACTIONS = _words("""
    admires borrows breaks brings builds buys carries catches cleans closes counts covers crosses
    draws drops fetches finds fixes follows forgets guards hides holds keeps leaves lifts likes
    loses makes mends moves needs opens orders packs paints passes picks pulls pushes reads repairs
    saves sees sells sends shakes shows steals takes touches turns uses visits wants washes watches
""")

ADVERBS = _words("""
    again already always away boldly calmly daily early gladly here late loudly never now often
    once outside quickly quietly rarely slowly softly sometimes soon there today together tomorrow
    tonight twice
""")

OTHERS = _words("""
    air almond answer apple apricot arm artist autumn baby ball banana bank bean bird body brain
    branch brick brother cache car card carrot cherry child city class cluster colour computer
    corner country cousin data daughter day dinner dream ear earth elephant energy engine evening
    eye family father feather fig fire fish flower foot friend fruit game garden giraffe girl grape
    grass hair hand head heart hello hour house ice idea juice king language laugh law lemon life
    line lion list lunch machine mango melon memory milk minute model money month moon morning
    mother mouth music name nest night noise nose number nut ocean office olive onion orange paint
    park party peach pear people pepper phone plant plum poem poet potato price prize question queen
    rain rainbow reason rock room router sand sea season server shadow shape sister sky snow soap
    soldier song sound space sport spring star storm story student sugar summer sun sweater system
    thunder tiger time token tomato tooth town toy travel uncle village voice water weather week
    wind winter winner woman wood wool word work world worm year zero
""")
COMMON = tuple(
    sorted({*COLOURS, *JOBS, *ANIMALS, *FOODS, *THINGS, *QUALITIES, *ACTIONS, *ADVERBS, *OTHERS})
)
"""Every word that is no name."""
_COMMON = frozenset(COMMON)

_ONSETS = _words(
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr r s sh sl st t tr v w z"
)
_VOWELS = _words("a e i o u a e i o u ai ea oo")
_CODAS = ("", "", "", "b", "d", "g", "k", "l", "m", "n", "p", "r", "s", "t", "x", "nd", "rt", "st")


def made_up_word(random: Random, max_letters: int = 8) -> str:
    """Returns a word that means nothing, of 3 to `max_letters` letters.

    Half of them are syllables, the others the beginning of one word and the end of another.
    """
    while True:
        if random.random() < 0.5:
            word = "".join(
                random.choice(_ONSETS) + random.choice(_VOWELS) + random.choice(_CODAS)
                for _ in range(random.choice((1, 2, 2, 2, 3)))
            )
        else:
            one, other = random.sample(COMMON, 2)
            word = (
                one[: random.randint(1, len(one) - 1)] + other[random.randint(1, len(other) - 1) :]
            )
        if 3 <= len(word) <= max_letters and word not in _COMMON:
            return word


def person(random: Random) -> str:
    """Returns a name, now and then one made up."""
    return random.choice(NAMES) if random.random() < 0.85 else made_up_word(random).capitalize()


def sentence(random: Random) -> str:
    """Returns a sentence of 3 to 16 words with its full stop, such as "The mill is quiet."."""
    thing, other = random.sample(THINGS, 2)
    quality, another = random.sample(QUALITIES, 2)
    action, deed = random.sample(ACTIONS, 2)
    name, friend = random.sample(NAMES, 2)
    animal, food, city = random.choice(ANIMALS), random.choice(FOODS), random.choice(CITIES)
    adverb, made_up = random.choice(ADVERBS), made_up_word(random)
    return random.choice(
        (
            f"The {thing} is {quality}.",
            f"The {quality} {thing} is {another}.",
            f"{name} {action} the {quality} {thing}.",
            f"{name} {action} the {thing} {adverb}.",
            f"The {animal} {action} a {quality} {thing} near the {other}.",
            f"{name} and {friend} found a {quality} {thing} in the {other}.",
            f"A {quality} {animal} {action} the {thing}, and {name} {deed} it {adverb}.",
            f"Behind the {thing} there is a {quality} {other} that {name} {action}.",
            f"{name} said that the {animal} was {quality} and the {thing} was {another}.",
            f"Nobody in {city} {action} the {made_up}.",
            f"The {made_up} {action} the {quality} {thing}.",
            f"{adverb.capitalize()}, {name} {action} {food} in {city}.",
            f"When the {thing} is {quality}, {name} {action} the {other} and the {animal} sleeps.",
        )
    )
