"""Self-attention over the tokens of all views of an object, restricted by a mask."""

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F


@dataclass
class ViewConditioning:
    """What the layers of a `MultiViewUNet` know of the cameras; constant over denoising steps.

    `camera` is (b, v, camera_dim) or None. `masks` maps tokens per view to a bool mask
    (b, v * n, v * n) of what each token may attend to; a resolution that is not listed sees
    everything. `plucker_terms` maps layer names to (b, v, c, h, w). A leading b of one serves
    a batch of any size, such as the two branches of guidance.
    """

    num_views: int
    camera: Tensor | None = None
    masks: dict[int, Tensor] = field(default_factory=dict)
    plucker_terms: dict[str, Tensor] = field(default_factory=dict)


class ViewContext:
    """Holds the `ViewConditioning` of the running forward pass for the layers of one model."""

    def __init__(self) -> None:
        self.views = ViewConditioning(num_views=1)

    def __deepcopy__(self, memo: dict) -> "ViewContext":
        # What a model last ran on is no part of the model, and may hang on a gradient's graph.
        return ViewContext()


def multi_view_attention(
    query: Tensor, key: Tensor, value: Tensor, num_views: int, mask: Tensor | None = None
) -> Tensor:
    """Attention in which the tokens of all views of an object see each other.

    Args:
        query, key, value: (b * v, heads, n, c), views of one object side by side.
        mask: bool (b or 1, v * n, v * n), True where a query (row) may see a key (column).

    Returns: (b * v, heads, n, c).

    Source: SPAD, section 3.1: `n v c h w` becomes `n (v h w) c` for self-attention.
    """
    batch_views, heads, tokens, channels = query.shape

    def join(x: Tensor) -> Tensor:
        x = x.reshape(batch_views // num_views, num_views, heads, tokens, channels)
        return x.transpose(1, 2).reshape(-1, heads, num_views * tokens, channels)

    def split(x: Tensor) -> Tensor:
        x = x.reshape(-1, heads, num_views, tokens, channels)
        return x.transpose(1, 2).reshape(batch_views, heads, tokens, channels)

    if num_views == 1:
        return F.scaled_dot_product_attention(query, key, value)
    attended = F.scaled_dot_product_attention(
        join(query), join(key), join(value), attn_mask=None if mask is None else mask[:, None]
    )
    return split(attended)


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
            layer(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        attended = multi_view_attention(query, key, value, views.num_views, views.masks.get(tokens))
        joined = attended.transpose(1, 2).flatten(-2)
        # to_out is a projection and a dropout.
        return attn.to_out[1](attn.to_out[0](joined))
