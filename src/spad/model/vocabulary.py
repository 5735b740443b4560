"""Which words a model trained on few captions knows, and what to ask it for instead."""

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_WORD = re.compile(r"[a-z0-9]+", re.IGNORECASE)
_SPELLINGS = (
    ("gray", "grey"),
    ("color", "colour"),
    ("armor", "armour"),
    ("donut", "doughnut"),
    ("ax", "axe"),
)
# What the words of a line name looks much the same; the first one known stands for the others.
_SYNONYMS = tuple(
    line.split()
    for line in """
        car automobile auto
        axe hatchet
        banner flag pennant
        barrel cask keg
        boat ship
        rock boulder
        bucket pail
        taxi cab
        castle fortress keep
        cauldron kettle
        chest coffer
        church chapel
        sword longsword
        claymore greatsword
        couch sofa settee
        red scarlet crimson
        mug cup
        teal turquoise cyan
        dagger knife
        damaged cracked
        deer stag reindeer
        dinosaur dino
        donkey mule
        pine fir spruce
        flower blossom
        gem jewel gemstone
        golden gold
        hammer mallet
        burger hamburger
        cheeseburger hamburger burger
        rabbit hare bunny
        horse pony
        house cottage home
        large big huge giant gigantic enormous
        hut cabin shack shed
        purple violet lilac lavender
        truck lorry
        bull ox
        fence palisade
        robot android mech
        small little tiny
        spaceship spacecraft starship
        beige tan
        frog toad
        mushroom toadstool
        tyrannosaurus trex
        wooden wood
    """.strip().splitlines()
)
_DETERMINERS = frozenset("an the this that some one my your his her its our their".split())
# Parts of a word shorter than this say little: "art" is in "cart".
_SHORTEST_PART = 4
_SIMILAR = 0.72


def words_of(text: str) -> list[str]:
    """The words of a text: lower case, letters and digits, as `word_tokenizer` has them."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class Reading:
    """How a model with a small vocabulary reads a prompt.

    Attributes:
        prompt: with known forms in place of unknown ones ("trees" becomes "tree", "sofa" "couch").
        replaced: (word, known form) pairs, in order.
        unknown: words without a known form, in order, each once.
        known: whether it knows at least one word that says something.
    """

    prompt: str
    replaced: tuple[tuple[str, str], ...]
    unknown: tuple[str, ...]
    known: bool


def read_prompt(prompt: str, captions: Iterable[str]) -> Reading:
    """Read `prompt` with the words of `captions`."""
    vocabulary = {word for caption in captions for word in words_of(caption)}
    forms = {word: _known_form(word, vocabulary) for word in words_of(prompt)}
    replaced = tuple((word, form) for word, form in forms.items() if form not in (None, word))
    unknown = tuple(word for word, form in forms.items() if form is None)
    told = {form for form in forms.values() if form is not None} - _DETERMINERS - {"a"}

    def known_form(match: re.Match) -> str:
        word = match.group()
        form = forms[word.lower()]
        return word if form in (None, word.lower()) else form

    return Reading(_WORD.sub(known_form, prompt), replaced, unknown, bool(told))


def unknown_words(prompt: str, captions: Iterable[str]) -> list[str]:
    """Words of `prompt` that appear in no caption in any simple form, in order, each once."""
    return list(read_prompt(prompt, captions).unknown)


def nearest_captions(prompt: str, captions: Sequence[str], count: int = 3) -> list[str]:
    """The known captions most like `prompt`, best first; fewer than `count` if few are like it.

    Captions score by the words they share with the prompt, rare words more than common ones, and
    for words the model does not know by words spelled alike. Ties go to the shorter caption.
    """
    distinct = sorted(set(captions))
    words = {caption: set(words_of(caption)) for caption in distinct}
    uses = Counter(word for known in words.values() for word in known)
    weights = _sought_words(prompt, uses)
    if not weights:
        return []
    rarity = {word: math.log(1 + len(distinct) / uses[word]) for word in weights}

    def score(caption: str) -> float:
        return sum(weights[word] * rarity[word] for word in words[caption] & weights.keys())

    loss_mask = [(-score(caption), len(words[caption]), caption) for caption in distinct]
    return [caption for negative, _, caption in sorted(loss_mask)[:count] if negative < 0]


def describe_reading(reading: Reading, captions: Sequence[str], model: str) -> list[str]:
    """Sentences for the user on what `model` did not know; empty if it knew every word."""
    sentences = [
        f'"{word}" is not in {model}\'s vocabulary; reading it as "{form}"'
        for word, form in reading.replaced
    ]
    if reading.unknown:
        quoted = ", ".join(f'"{word}"' for word in reading.unknown)
        verb = "is" if len(reading.unknown) == 1 else "are"
        sentence = f"{quoted} {verb} not in {model}'s vocabulary"
        if not reading.known:
            sentence += f", so {model} knows no word of this prompt and draws anything"
        nearest = nearest_captions(reading.prompt, captions)
        if nearest:
            sentence += f'; nearest things it knows: {", ".join(nearest)}; try: "{nearest[0]}"'
        else:
            sentence += f"; `spad models {model} --captions` lists what it knows"
        sentences.append(sentence)
    return sentences


def _known_form(word: str, vocabulary: set[str]) -> str | None:
    return next((form for form in _forms(word) if form in vocabulary), None)


def _forms(word: str) -> list[str]:
    """The word, then its other simple forms, then words that mean much the same."""
    forms = _simple_forms(word)
    return forms + [other for f in forms for line in _SYNONYMS if f in line for other in line]


def _simple_forms(word: str) -> list[str]:
    """The word, then its other numbers and spellings, likeliest first."""
    forms = [word]
    if word in _DETERMINERS:
        forms.append("a")
    for pair in _SPELLINGS:
        for one, other in (pair, pair[::-1]):
            if word.startswith(one):
                forms.append(other + word[len(one) :])
    if word.endswith("ies"):
        forms.append(word[:-3] + "y")
    if word.endswith("ves"):
        forms += [word[:-3] + "f", word[:-3] + "fe"]
    if word.endswith("s") and not word.endswith("ss"):
        forms.append(word[:-1])
    if word.endswith("es"):
        forms.append(word[:-2])
    forms += [word + "s", word + "es"]
    if word.endswith("y"):
        forms.append(word[:-1] + "ies")
    return forms


def _sought_words(prompt: str, uses: Counter) -> dict[str, float]:
    """Weights of known words: 1 for those of the prompt, less for some like its unknown ones."""
    weights: dict[str, float] = {}
    for word in words_of(prompt):
        form = _known_form(word, uses)
        found = {form: 1.0} if form else _alike(word, uses)
        for other, weight in found.items():
            weights[other] = max(weight, weights.get(other, 0.0))
    return {word: w for word, w in weights.items() if word not in _DETERMINERS and word != "a"}


def _alike(word: str, uses: Counter) -> dict[str, float]:
    """Known words that are parts of an unknown one, or spelled like it, with weights below 1."""
    found = {
        other: 0.9 * difflib.SequenceMatcher(None, word, other).ratio()
        for other in difflib.get_close_matches(word, sorted(uses), n=3, cutoff=_SIMILAR)
    }
    for other in uses:
        shorter, longer = sorted((word, other), key=len)
        if len(shorter) >= _SHORTEST_PART and shorter in longer:
            found[other] = 0.95
    return found
