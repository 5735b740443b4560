"""A small text encoder of our own: whole words in, diffusers-compatible embeddings out."""

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from spad.model.vocabulary import words_of

PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<start>", "<end>"
MAX_TOKENS = 24


def build_tokenizer(captions: Iterable[str], known: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of the words `known`, in this order, then those of `captions` by alphabet."""
    words = {word for caption in captions for word in words_of(caption)}
    words = [*known, *sorted(words.difference(known))]
    special = [PAD, UNKNOWN, START, END]
    vocabulary = {token: index for index, token in enumerate(special + words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[^a-z0-9]+"), behavior="removed")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(START, vocabulary[START]), (END, vocabulary[END])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_TOKENS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
    )


def build_text_encoder(
    tokenizer: PreTrainedTokenizerFast, width: int = 256, num_layers: int = 2
) -> CLIPTextModel:
    """An untrained CLIP-style text transformer for `tokenizer`."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=num_layers,
            num_attention_heads=width // 64,
            max_position_embeddings=MAX_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def is_of_whole_words(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether it gives words the ids that `build_tokenizer` gives them."""
    return tokenizer.get_vocab() == build_tokenizer((), _words_by_id(tokenizer)).get_vocab()


def add_words(
    tokenizer: PreTrainedTokenizerFast, text_encoder: CLIPTextModel, captions: Iterable[str]
) -> PreTrainedTokenizerFast:
    """A tokenizer that knows the words of `captions` too; the ids of the old ones stay.

    `tokenizer` must be one of whole words. In `text_encoder` a new word starts as what the unknown
    word has become.
    """
    grown = build_tokenizer(captions, _words_by_id(tokenizer))
    text_encoder.resize_token_embeddings(len(grown), mean_resizing=False)
    with torch.no_grad():
        embeddings = text_encoder.get_input_embeddings().weight
        embeddings[len(tokenizer) :] = embeddings[tokenizer.unk_token_id]
    return grown


def _words_by_id(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary.keys() - set(tokenizer.all_special_tokens), key=vocabulary.get)


def tokenize(tokenizer, prompts: Sequence[str]):
    """Token ids (b, model_max_length), padded and cut."""
    return tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
