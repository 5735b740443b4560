"""RayEncoding: the rays of tokens in the queries and keys of the attention between views."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Numbers of a ray: its direction d, then its moment m.
PLUCKER_CHANNELS = 6


class RayEncoding(nn.Module):
    """Plücker coordinates of a token's ray, added to its query as (d, m), to its key as (m, d).

    The projection is learned and zero at the start: every head repeats the six numbers as often as
    they fit in its channels, each time with a gain for the query and one for the key. The axes of
    space share a gain. So the pair term, the product of what two tokens' rays add to query and
    key, is a multiple of the rays' reciprocal product d1·m2 + m1·d2, whatever is learned: zero for
    rays that meet, and the same after a rigid motion of the world.

    Source: RayPE (arXiv 2606.27345). Differs: gains for a free linear map, so that the law holds.

    Raises: ValueError: heads are too narrow for a ray.
    """

    def __init__(self, name: str, heads: int, head_channels: int):
        super().__init__()
        self.name = name
        copies = head_channels // PLUCKER_CHANNELS
        if not copies:
            raise ValueError(
                f"expected at least {PLUCKER_CHANNELS} channels per head for rays in queries and "
                f"keys, got {head_channels}; try fewer heads, or rays=map"
            )
        self.unused = head_channels - copies * PLUCKER_CHANNELS
        self.query_gains = nn.Parameter(torch.zeros(heads, copies))
        self.key_gains = nn.Parameter(torch.zeros(heads, copies))

    def forward(self, rays: Tensor) -> tuple[Tensor, Tensor]:
        """Rays (b, v, n, 6) -> summands of queries and of keys, (b, v, heads, n, c) each."""
        swapped = rays.roll(PLUCKER_CHANNELS // 2, dims=-1)
        return self._scaled(rays, self.query_gains), self._scaled(swapped, self.key_gains)

    def _scaled(self, rays: Tensor, gains: Tensor) -> Tensor:
        copies = gains[:, None, :, None] * rays.to(gains.dtype)[..., None, :, None, :]
        return F.pad(copies.flatten(-2), (0, self.unused))
