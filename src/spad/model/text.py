"""Texts as a UNet reads them, from one text encoder or two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spad.model.bases import TextReading
from spad.model.word_tokenizer import tokenize


@dataclass(frozen=True)
class TextEmbeddings:
    """Embeddings of b texts.

    Attributes:
        tokens: (b, length, d), for cross-attention.
        pooled: (b, d'), added to the embedded timestep; None for UNets that read none.
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> TextEmbeddings:
        return self._each(lambda x: x[part])

    def to(self, *args: Any, **kwargs: Any) -> TextEmbeddings:
        """A copy on another device or of another type, as `Tensor.to`."""
        return self._each(lambda x: x.to(*args, **kwargs))

    def repeated(self, count: int) -> TextEmbeddings:
        """Every text `count` times, side by side."""
        return self._each(lambda x: x.repeat_interleave(count, 0))

    @staticmethod
    def cat(parts: Iterable[TextEmbeddings]) -> TextEmbeddings:
        """All texts in one."""
        parts = list(parts)
        pooled = [one.pooled for one in parts if one.pooled is not None]
        tokens = torch.cat([one.tokens for one in parts])
        return TextEmbeddings(tokens, torch.cat(pooled) if pooled else None)

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors, for comparison and messages."""
        return tuple(tuple(x.shape) for x in (self.tokens, self.pooled) if x is not None)

    def _each(self, change: Any) -> TextEmbeddings:
        pooled = None if self.pooled is None else change(self.pooled)
        return TextEmbeddings(change(self.tokens), pooled)


@dataclass(frozen=True)
class TokenIds:
    """Token ids of b texts.

    Attributes:
        ids: (b, length) for every text encoder.
        is_empty: (b,) bool.
    """

    ids: tuple[Tensor, ...]
    is_empty: Tensor

    @classmethod
    def of(cls, tokenizers: Sequence[PreTrainedTokenizerBase], *texts: Sequence[str]) -> TokenIds:
        """Padded and truncated ids of texts: the same for every tokenizer, or one list for each.

        A text is empty if it is for all of them.
        """
        lists = texts * len(tokenizers) if len(texts) == 1 else texts
        ids = tuple(map(tokenize, tokenizers, lists))
        return cls(ids, torch.tensor([not any(each) for each in zip(*lists, strict=True)]))

    def to(self, device: torch.device) -> TokenIds:
        """A copy on another device."""
        return TokenIds(tuple(x.to(device) for x in self.ids), self.is_empty.to(device))


def encode_tokens(
    encoders: Sequence[PreTrainedModel], tokens: TokenIds, reading: TextReading
) -> TextEmbeddings:
    """Embeddings of texts by a base model's text encoders."""
    outputs: list[Any] = [
        encoder(ids, output_hidden_states=reading.layer != -1)
        for encoder, ids in zip(encoders, tokens.ids, strict=True)
    ]
    hidden = [
        one.last_hidden_state if reading.layer == -1 else one.hidden_states[reading.layer]
        for one in outputs
    ]
    embeddings = TextEmbeddings(
        torch.cat(hidden, dim=-1), outputs[-1].text_embeds if reading.is_pooled else None
    )
    if not reading.is_empty_zero:
        return embeddings
    return embeddings._each(
        lambda x: x.masked_fill(tokens.is_empty.view(-1, *[1] * (x.ndim - 1)), 0)
    )
