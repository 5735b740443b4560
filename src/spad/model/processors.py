"""Attention layers of a `MultiViewUNet`: what they know of views, and how they attend."""

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F

from spad.attention import AttentionMask, multiview_attention


@dataclass
class ViewConditioning:
    """What the layers of a `MultiViewUNet` know of cameras and text; constant over denoising steps.

    A leading b of one serves a batch of any size, such as the two branches of guidance.

    Attributes:
        camera_embedding: (b, v, width), added to the embedded timestep; None adds nothing.
        masks: tokens per view -> what each token may attend to; a resolution that is not listed
            sees everything.
        plucker_features: layer -> (b, v, c, h, w).
        backend: of the attention between views, see `multiview_attention`.
        text_keys_values: layer -> keys and values (b, heads, length, c) of the text; layers not
            listed compute them in every step.
    """

    num_views: int
    camera_embedding: Tensor | None = None
    masks: dict[int, AttentionMask] = field(default_factory=dict)
    plucker_features: dict[str, Tensor] = field(default_factory=dict)
    backend: str | None = None
    text_keys_values: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class ViewContext:
    """Holds the `ViewConditioning` of the running forward pass for the layers of one model."""

    def __init__(self) -> None:
        self.views = ViewConditioning(num_views=1)

    def __deepcopy__(self, memo: dict) -> "ViewContext":
        # What a model last ran on is no part of the model, and may hang on a gradient's graph.
        return ViewContext()


class MultiViewAttnProcessor:
    """Makes a diffusers self-attention layer attend over all views; installed in `attn1`."""

    def __init__(self, context: ViewContext):
        self.context = context

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_) -> Tensor:
        """hidden_states: (b * v, n, c), views of one object side by side."""
        assert encoder_hidden_states is None, "multi-view attention is self-attention"
        views = self.context.views
        tokens = hidden_states.shape[1]
        query, key, value = (
            _per_head(layer(hidden_states), attn.heads)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        mask = views.masks.get(tokens)
        attended = multiview_attention(query, key, value, views.num_views, mask, views.backend)
        return _projected(attn, attended)


class TextAttnProcessor:
    """Attention to text whose keys and values may be there already; installed in `attn2`."""

    def __init__(self, name: str, context: ViewContext):
        self.name, self.context = name, context

    @staticmethod
    def term(attn, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (b, heads, length, c) of text (b, length, d)."""
        return _per_head(attn.to_k(text), attn.heads), _per_head(attn.to_v(text), attn.heads)

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_) -> Tensor:
        """hidden_states: (b * v, n, c); text: (b, length, d), or (b * v, length, d)."""
        query = _per_head(attn.to_q(hidden_states), attn.heads)
        key, value = self.context.views.text_keys_values.get(self.name) or self.term(
            attn, encoder_hidden_states
        )
        views = len(query) // len(key)
        key, value = (x.repeat_interleave(views, dim=0) for x in (key, value))
        return _projected(attn, F.scaled_dot_product_attention(query, key, value))


def _per_head(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _projected(attn, attended: Tensor) -> Tensor:
    # to_out is a projection and a dropout.
    return attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(-2)))
