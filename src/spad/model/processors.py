"""Attention processors of a `MultiViewUNet`, and the conditioning that they read."""

from collections.abc import Callable
from dataclasses import dataclass, field

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from spad.attention import AttentionMask, multiview_attention

RaySummands = tuple[Tensor, Tensor]


@dataclass
class ViewConditioning:
    """Cameras and text as the layers of a `MultiViewUNet` read them, the same in all steps.

    A leading b of one serves a batch of any size, such as the two branches of guidance. A function
    in place of a tensor computes it in every step, where the layers are on the device only then.

    Attributes:
        camera_embedding: (b, v, width), added to the embedded timestep; None adds nothing.
        masks: tokens per view -> attention mask. Default for a resolution: every token sees all.
        plucker_features: transformer -> (b, v, h * w, c).
        backend: backend of the attention between views, see `multiview_attention`.
        text_keys_values: transformer block -> keys and values (b, heads, length, c) of the text.
            Default for a block: computed in every step.
        ray_encodings: transformer block -> what rays add to the queries and keys of the attention
            between views, (b, v, heads, n, c) each.
        text_embedding: (b, width), of pooled text and image size, added to the embedded timestep
            of UNets that read them.
        depth_features: (b, v, c, h, w), added to what the first convolution gives; None where no
            depth is given.
    """

    num_views: int
    camera_embedding: Tensor | Callable[[], Tensor] | None = None
    masks: dict[int, AttentionMask] = field(default_factory=dict)
    plucker_features: dict[str, Tensor | Callable[[], Tensor]] = field(default_factory=dict)
    backend: str | None = None
    text_keys_values: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    ray_encodings: dict[str, RaySummands | Callable[[], RaySummands]] = field(default_factory=dict)
    text_embedding: Tensor | Callable[[], Tensor] | None = None
    depth_features: Tensor | Callable[[], Tensor] | None = None


class MultiViewAttnProcessor:
    """Self-attention over the tokens of all views of an object; installed in `attn1`."""

    def __init__(self, name: str):
        self.name = name

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        *,
        views: ViewConditioning,
        **_: object,
    ) -> Tensor:
        """(b * v, n, c) -> (b * v, n, c), views of one object side by side."""
        assert encoder_hidden_states is None, "multi-view attention is self-attention"
        # The layers of the attention between views: the block's own, or copies beside them.
        layers = getattr(attn, "across_views", attn)
        tokens = hidden_states.shape[1]
        query, key, value = _queries_keys_values(layers, hidden_states)
        encoding = views.ray_encodings.get(self.name)
        if encoding is not None:
            summands = encoding() if callable(encoding) else encoding
            query, key = (
                (x.unflatten(0, (-1, views.num_views)) + summand.to(x.dtype)).flatten(0, 1)
                for x, summand in zip((query, key), summands, strict=True)
            )
        mask = views.masks.get(tokens)
        attended = multiview_attention(query, key, value, views.num_views, mask, views.backend)
        output = _projected(layers, attended)
        if layers is attn:
            return output
        query, key, value = _queries_keys_values(attn, hidden_states)
        own = F.scaled_dot_product_attention(query, key, value)
        return _projected(attn, own) + output


class TextAttnProcessor:
    """Cross-attention to text, with keys and values of `ViewConditioning`; installed in `attn2`."""

    def __init__(self, name: str):
        self.name = name

    @staticmethod
    def keys_values(attn: Attention, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (b, heads, length, c) of text (b, length, d)."""
        return _per_head(attn.to_k, text, attn.heads), _per_head(attn.to_v, text, attn.heads)

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        *,
        views: ViewConditioning,
        **_: object,
    ) -> Tensor:
        """(b * v, n, c) and text (b, length, d) or (b * v, length, d) -> (b * v, n, c)."""
        query = _per_head(attn.to_q, hidden_states, attn.heads)
        key, value = views.text_keys_values.get(self.name) or self.keys_values(
            attn, encoder_hidden_states
        )
        copies = len(query) // len(key)
        key, value = (x.repeat_interleave(copies, dim=0) for x in (key, value))
        return _projected(attn, F.scaled_dot_product_attention(query, key, value))


def _queries_keys_values(attn: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(b, n, d) -> queries, keys and values (b, heads, n, c)."""
    query, key, value = (
        _per_head(layer, x, attn.heads) for layer in (attn.to_q, attn.to_k, attn.to_v)
    )
    return query, key, value


def _per_head(layer: nn.Module | None, x: Tensor, heads: int) -> Tensor:
    """(b, n, d) -> (b, heads, n, c) through a linear layer."""
    assert layer is not None
    return layer(x).unflatten(-1, (heads, -1)).transpose(1, 2)


def _projected(attn: Attention, attended: Tensor) -> Tensor:
    """(b, heads, n, c) -> (b, n, d) through the output layer."""
    assert attn.to_out is not None
    projection, dropout = attn.to_out
    return dropout(projection(attended.transpose(1, 2).flatten(-2)))
