"""A tokenizer of whole words, and a small CLIP text encoder for it."""

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from spad.model.vocabulary import words_of

PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<start>", "<end>"
MAX_TOKENS = 24


def build_tokenizer(captions: Iterable[str], known: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of the words `known`, in this order, then of those of `captions`, sorted."""
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
    """An untrained CLIP text transformer for `tokenizer`."""
    ids = (_token_id(tokenizer, token) for token in (PAD, START, END))
    pad_token_id, bos_token_id, eos_token_id = ids
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=num_layers,
            num_attention_heads=width // 64,
            max_position_embeddings=MAX_TOKENS,
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
        )
    )


def is_of_whole_words(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether `build_tokenizer` would give the tokenizer's words the same ids."""
    return tokenizer.get_vocab() == build_tokenizer((), _words_by_id(tokenizer)).get_vocab()


def add_words(
    tokenizer: PreTrainedTokenizerFast, text_encoder: CLIPTextModel, captions: Iterable[str]
) -> PreTrainedTokenizerFast:
    """A tokenizer with the words of `captions` too; the former words keep their ids.

    `tokenizer` must be one of whole words. `text_encoder` is changed: it gets an embedding for each
    new word, which starts as that of the unknown word.
    """
    grown = build_tokenizer(captions, _words_by_id(tokenizer))
    text_encoder.resize_token_embeddings(len(grown), mean_resizing=False)
    with torch.no_grad():
        embeddings = text_encoder.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)
        embeddings.weight[len(tokenizer) :] = embeddings.weight[_token_id(tokenizer, UNKNOWN)]
    return grown


def _token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    index = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(index, int)
    return index


def _words_by_id(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_tokens)
    return sorted(vocabulary.keys() - special, key=lambda word: vocabulary[word])


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> torch.Tensor:
    """Token ids (b, model_max_length), padded and truncated."""
    return tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
