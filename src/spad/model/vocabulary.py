"""Vocabulary of a model trained on few captions: known words, synonyms, nearest captions."""

import difflib
import math
import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

_WORD = re.compile(r"[a-z0-9]+", re.IGNORECASE)
_SPELLINGS = (
    ("gray", "grey"),
    ("color", "colour"),
    ("armor", "armour"),
    ("donut", "doughnut"),
    ("ax", "axe"),
)
# Words on one line name similar-looking things; an unknown one is replaced by the first known one.
SYNONYMS = tuple(
    tuple(line.split())
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
Synonyms = Sequence[Sequence[str]]
_DETERMINERS = frozenset("an the this that some one my your his her its our their".split())
# Shorter parts of words mean little: "art" is in "cart".
_SHORTEST_PART = 4
_SIMILAR = 0.72
# Words of a caption that names a thing and one property of it.
_BRIEF = 2


def words_of(text: str) -> list[str]:
    """Words of a text, in lower case, of letters and digits, as `word_tokenizer` has them."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class Reading:
    """A prompt in the words of a model with a small vocabulary.

    Attributes:
        prompt: the prompt with known forms in place of unknown words ("trees" becomes "tree",
            "sofa" becomes "couch").
        replaced: pairs of word and known form, in order.
        unknown: words without a known form, in order, each once.
        known: whether a word other than an article or the like is known.
    """

    prompt: str
    replaced: tuple[tuple[str, str], ...]
    unknown: tuple[str, ...]
    known: bool


def read_prompt(prompt: str, captions: Iterable[str], synonyms: Synonyms = SYNONYMS) -> Reading:
    """Read `prompt` with the words of `captions`."""
    vocabulary = {word for caption in captions for word in words_of(caption)}
    forms = {word: _known_form(word, vocabulary, synonyms) for word in words_of(prompt)}
    replaced = tuple((word, form) for word, form in forms.items() if form not in (None, word))
    unknown = tuple(word for word, form in forms.items() if form is None)
    content = {form for form in forms.values() if form is not None} - _DETERMINERS - {"a"}

    def known_form(match: re.Match[str]) -> str:
        word = match.group()
        form = forms[word.lower()]
        return word if form in (None, word.lower()) else form

    return Reading(_WORD.sub(known_form, prompt), replaced, unknown, bool(content))


def nearest_captions(
    prompt: str, captions: Sequence[str], count: int = 3, synonyms: Synonyms = SYNONYMS
) -> list[str]:
    """Up to `count` of the captions that share words with `prompt`, the most similar first.

    A shared word counts more if few captions have it. For an unknown word of the prompt, words of
    similar spelling count, but less. The shorter caption wins a tie. After the first, captions
    count less if they share words with an earlier one that the prompt does not ask for, so that
    they name several things.

    Source: maximal marginal relevance (Carbonell and Goldstein 1998).
    """
    distinct = sorted(set(captions))
    words = {caption: set(words_of(caption)) for caption in distinct}
    uses = Counter(word for known in words.values() for word in known)
    weights = _sought_words(prompt, uses, synonyms)
    if not weights:
        return []
    rarity = {word: math.log(1 + len(distinct) / uses[word]) for word in weights}

    def score(caption: str) -> float:
        return sum(weights[word] * rarity[word] for word in words[caption] & weights.keys())

    scores = {caption: score(caption) for caption in distinct}
    scores = {caption: value for caption, value in scores.items() if value > 0}
    others = {caption: words[caption] - weights.keys() - _DETERMINERS - {"a"} for caption in scores}
    chosen: list[str] = []
    while scores and len(chosen) < count:
        best = min(scores, key=lambda caption: (-scores[caption], len(words[caption]), caption))
        chosen.append(best)
        del scores[best]
        for caption in scores:
            fewer = min(len(others[best]), len(others[caption]))
            scores[caption] *= 1 - len(others[best] & others[caption]) / max(1, fewer)
            # Nothing that the earlier one does not show.
            if fewer == 0:
                scores[caption] = 0.0
        scores = {caption: value for caption, value in scores.items() if value > 0}
    return chosen


def unlike_captions(captions: Sequence[str], count: int = 3) -> list[str]:
    """Up to `count` short captions without a word in common, of the most common words."""
    words = {caption: set(words_of(caption)) - _DETERMINERS - {"a"} for caption in set(captions)}
    brief = {c: known for c, known in words.items() if len(known) <= _BRIEF} or words
    uses = Counter(word for known in brief.values() for word in known)
    shortest = sorted(brief, key=lambda caption: (len(words[caption]), len(caption), caption))
    chosen: list[str] = []
    taken: set[str] = set()
    for word, _ in sorted(uses.items(), key=lambda use: (-use[1], use[0])):
        free = (c for c in shortest if word in words[c] and not words[c] & taken)
        if (caption := next(free, None)) is not None:
            chosen.append(caption)
            taken |= words[caption]
        if len(chosen) == count:
            break
    return chosen


def describe_reading(reading: Reading, captions: Sequence[str], model: str) -> list[str]:
    """Sentences for the user about unknown words of `model`; empty if it knew every word."""
    sentences = [
        f'"{word}" is not in {model}\'s vocabulary; reading it as "{form}"'
        for word, form in reading.replaced
    ]
    if reading.unknown:
        quoted = ", ".join(f'"{word}"' for word in reading.unknown)
        verb = "is" if len(reading.unknown) == 1 else "are"
        sentence = f"{quoted} {verb} not in {model}'s vocabulary"
        if not reading.known:
            sentence += f", so {model} knows no word of this prompt and draws a random object"
        nearest = nearest_captions(reading.prompt, captions)
        if nearest:
            sentence += f'; nearest things it knows: {", ".join(nearest)}; try: "{nearest[0]}"'
        elif some := unlike_captions(captions):
            sentence += f"; some of what it knows: {', '.join(some)}"
            sentence += f"; `spad models {model} --captions` lists all"
        sentences.append(sentence)
    return sentences


def _known_form(word: str, vocabulary: Container[str], synonyms: Synonyms) -> str | None:
    return next((form for form in _forms(word, synonyms) if form in vocabulary), None)


def _forms(word: str, synonyms: Synonyms) -> list[str]:
    """The word, then its simple forms, then its synonyms."""
    forms = _simple_forms(word)
    return forms + [other for f in forms for line in synonyms if f in line for other in line]


def _simple_forms(word: str) -> list[str]:
    """The word, then its singular, plural and other spellings, the likeliest first."""
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


def _sought_words(prompt: str, uses: Counter[str], synonyms: Synonyms) -> dict[str, float]:
    """Known words to look for: those of the prompt weigh 1, those like its unknown ones less."""
    weights: dict[str, float] = {}
    for word in words_of(prompt):
        form = _known_form(word, uses, synonyms)
        found = {form: 1.0} if form else _alike(word, uses)
        for other, weight in found.items():
            weights[other] = max(weight, weights.get(other, 0.0))
    return {word: w for word, w in weights.items() if word not in _DETERMINERS and word != "a"}


def _alike(word: str, uses: Counter[str]) -> dict[str, float]:
    """Known words that contain an unknown one, are part of it or spelled like it: weights < 1."""
    found = {
        other: 0.9 * difflib.SequenceMatcher(None, word, other).ratio()
        for other in difflib.get_close_matches(word, sorted(uses), n=3, cutoff=_SIMILAR)
    }
    for other in uses:
        shorter, longer = sorted((word, other), key=len)
        if len(shorter) >= _SHORTEST_PART and shorter in longer:
            found[other] = 0.95
    return found
