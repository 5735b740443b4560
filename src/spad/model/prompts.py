"""Prompts of a call, or embeddings in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompts:
    """Prompts and negative prompts of a call.

    Attributes:
        positive: one or more prompts; none if `embeds` are given.
        negative: one for all prompts or one per prompt; none if `negative_embeds` are given.
        embeds, negative_embeds: (b, length, d).
    """

    positive: list[str]
    negative: list[str]
    embeds: Tensor | None = None
    negative_embeds: Tensor | None = None

    @classmethod
    def of(
        cls,
        prompt: str | Sequence[str] | None,
        embeds: Tensor | None,
        negative: str | Sequence[str] | None,
        negative_embeds: Tensor | None,
    ) -> Prompts:
        """Prompts from the arguments of a call.

        Raises: ValueError: a prompt is missing, empty, or given twice; other numbers of them.
        """
        if (prompt is None) == (embeds is None):
            got = "neither" if prompt is None else "both"
            raise ValueError(f"expected a prompt or prompt_embeds, got {got}")
        if negative is not None and negative_embeds is not None:
            raise ValueError("expected negative_prompt or negative_prompt_embeds, got both")
        prompts = [] if prompt is None else _as_list(prompt)
        if embeds is None and not (prompts and all(one.strip() for one in prompts)):
            raise ValueError("expected a prompt, got an empty one; describe one object")
        count = len(prompts) if embeds is None else len(embeds)
        negatives = [] if negative_embeds is not None else _as_list(negative or "")
        if negative_embeds is None and len(negatives) not in (1, count):
            raise ValueError(
                f"expected one negative_prompt, or {count}, one per prompt, got {len(negatives)}"
            )
        return cls(prompts, negatives, embeds, negative_embeds)

    @property
    def count(self) -> int:
        """Number of prompts."""
        return len(self.positive) if self.embeds is None else len(self.embeds)


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
