"""Prompts of a call, or embeddings in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spad.model.text import TextEmbeddings

Text = str | Sequence[str] | None
Embeddings = Tensor | TextEmbeddings | None


@dataclass(frozen=True)
class Prompts:
    """Prompts, or negative prompts, of a call.

    Attributes:
        texts: none if there are `embeds`.
        second: those for the second text encoder, if they differ.
        embeds: embeddings in the place of texts.
    """

    texts: list[str]
    second: list[str] | None = None
    embeds: TextEmbeddings | None = None

    def __len__(self) -> int:
        return len(self.texts if self.embeds is None else self.embeds)

    @classmethod
    def positive(
        cls,
        prompt: Text,
        second: Text,
        embeds: Embeddings,
        pooled: Tensor | None,
    ) -> Prompts:
        """Prompts from the arguments of a call.

        Raises: ValueError: there is none, one is empty, or it is given twice.
        """
        if (prompt is None) == (embeds is None):
            got = "neither" if prompt is None else "both"
            raise ValueError(f"expected a prompt or prompt_embeds, got {got}")
        given = cls._of("prompt", prompt, second, embeds, pooled)
        if given.embeds is None and not (given.texts and all(one.strip() for one in given.texts)):
            raise ValueError("expected a prompt, got an empty one; describe one object")
        return given

    @classmethod
    def negative(
        cls,
        prompt: Text,
        second: Text,
        embeds: Embeddings,
        pooled: Tensor | None,
        count: int,
    ) -> Prompts:
        """Negative prompts for `count` prompts: one for all or one each; none are empty ones.

        Raises: ValueError: there is another number of them, or they are given twice.
        """
        if prompt is not None and embeds is not None:
            raise ValueError("expected negative_prompt or negative_prompt_embeds, got both")
        given = cls._of("negative_prompt", prompt or "", second, embeds, pooled)
        if given.embeds is None and len(given) not in (1, count):
            raise ValueError(
                f"expected one negative_prompt, or {count}, one per prompt, got {len(given)}"
            )
        return given

    @classmethod
    def _of(
        cls,
        name: str,
        prompt: Text,
        second: Text,
        embeds: Embeddings,
        pooled: Tensor | None,
    ) -> Prompts:
        if pooled is not None and not isinstance(embeds, Tensor):
            raise ValueError(f"expected {name}_embeds with pooled_{name}_embeds, got none")
        if embeds is not None:
            if second is not None:
                raise ValueError(f"expected {name}_2 or {name}_embeds, got both")
            is_tensor = isinstance(embeds, Tensor)
            return cls([], None, TextEmbeddings(embeds, pooled) if is_tensor else embeds)
        texts = _as_list(prompt or "")
        others = None if second is None else _as_list(second)
        if others is not None and len(others) != len(texts):
            raise ValueError(f"expected {len(texts)} of {name}_2, as of {name}, got {len(others)}")
        return cls(texts, others)


def check_length(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Raises: ValueError: a text is too long for the text encoder."""
    if not texts:
        return
    most = tokenizer.model_max_length
    for text, ids in zip(texts, tokenizer(list(texts)).input_ids, strict=True):
        if len(ids) > most:
            ends = tokenizer.num_special_tokens_to_add()
            raise ValueError(
                f"expected a prompt of at most {most - ends} words or word parts, got "
                f"{len(ids) - ends}: {text[:40]!r}…; shorten it"
            )


def _as_list(text: str | Sequence[str]) -> list[str]:
    return [text] if isinstance(text, str) else list(text)
