"""spad.model.vocabulary: what a small model knows, and what it is asked for instead."""

import pytest

from spad.model.vocabulary import (
    describe_reading,
    nearest_captions,
    read_prompt,
    unlike_captions,
    words_of,
)

CAPTIONS = [
    "a green dragon",
    "a red dragon with wings",
    "a blue fish",
    "a tall oak tree",
    "a grey rock",
    "a gold axe",
    "a loaf of bread",
    "two berries",
]


@pytest.mark.parametrize(
    "prompt, form",
    [
        ("trees", "tree"),
        ("fishes", "fish"),
        ("gray", "grey"),
        ("the", "a"),
        ("loaves", "loaf"),
        ("berry", "berries"),
        ("ax", "axe"),
        ("wing", "wings"),
    ],
)
def test_simple_forms_of_known_words_are_known(prompt, form):
    reading = read_prompt(prompt, CAPTIONS)
    assert reading.unknown == ()
    assert reading.replaced == ((prompt, form),)
    assert reading.prompt == form


def test_words_that_mean_the_same_are_known():
    captions = ["a red couch", "a small pine tree", "a wooden barrel"]
    reading = read_prompt("two tiny scarlet sofas", captions)
    assert reading.replaced == (("tiny", "small"), ("scarlet", "red"), ("sofas", "couch"))
    assert reading.prompt == "two small red couch"
    assert reading.unknown == ("two",)
    # Where both are known, each is itself; a line's first known word goes before its others.
    assert read_prompt("a little couch", [*captions, "a little house"]).replaced == ()
    assert read_prompt("a cask", [*captions, "a keg"]).prompt == "a barrel"


def test_known_words_stay_as_written():
    prompt = "A Blue fish, with  wings!"
    assert read_prompt(prompt, CAPTIONS).prompt == prompt
    assert read_prompt(prompt, CAPTIONS).unknown == ()


def test_unknown_words_come_in_order_and_once():
    assert read_prompt("a zebra and a zebra on a rug", CAPTIONS).unknown == (
        "zebra",
        "and",
        "on",
        "rug",
    )


def test_every_caption_is_known_and_nearest_to_itself():
    for caption in CAPTIONS:
        assert read_prompt(caption, CAPTIONS).unknown == ()
        assert nearest_captions(caption, CAPTIONS, count=1) == [caption]


def test_nearest_goes_by_parts_of_words_then_by_shared_words():
    assert nearest_captions("a dragonfly", CAPTIONS)[0] == "a green dragon"
    assert nearest_captions("a red dragonfly", CAPTIONS)[0] == "a red dragon with wings"
    assert nearest_captions("a blue zzz", CAPTIONS) == ["a blue fish"]
    assert nearest_captions("bred", CAPTIONS, count=1) == ["a loaf of bread"]


def test_suggestions_name_several_things():
    captions = ["a red car", "a big red car", "a small red car", "a red fire truck", "a red apple"]
    several = ["a red apple", "a red car", "a red fire truck"]
    assert nearest_captions("a red zebra", captions) == several
    assert unlike_captions(captions) == ["a red car"]
    assert unlike_captions([*captions, "two blue fish", "a fish"]) == ["a red car", "a fish"]


def test_nothing_like_it_is_said_so():
    assert nearest_captions("qqqq", CAPTIONS) == []
    (sentence,) = describe_reading(read_prompt("a qqqq", CAPTIONS), CAPTIONS, "mini")
    assert "knows no word of this prompt" in sentence
    assert "spad models mini --captions" in sentence


def test_sentence_names_word_model_and_what_to_try():
    (sentence,) = describe_reading(read_prompt("a green dragonfly", CAPTIONS), CAPTIONS, "mini")
    assert sentence.startswith('"dragonfly" is not in mini\'s vocabulary; nearest things it knows:')
    assert sentence.endswith('try: "a green dragon"')


def test_order_of_captions_does_not_matter():
    prompt = "a green zebra with bread"
    assert nearest_captions(prompt, CAPTIONS) == nearest_captions(prompt, CAPTIONS[::-1])


def test_words_are_those_of_the_tokenizer():
    from spad.model.word_tokenizer import build_tokenizer

    text = "Don't, a 2-door CAR\n(blue)"
    assert build_tokenizer([text]).tokenize(text) == words_of(text)


def test_only_tokenizers_of_our_own_are_given_words():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from spad.model.word_tokenizer import UNKNOWN, build_tokenizer, is_of_whole_words

    own = build_tokenizer(["a tree"], known=["zebra"])
    assert is_of_whole_words(own)
    # The same words, but the special ones have other ids.
    words = {"zebra": 0, "a": 1, "tree": 2, UNKNOWN: 3}
    other = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    assert not is_of_whole_words(PreTrainedTokenizerFast(tokenizer_object=other, unk_token=UNKNOWN))
