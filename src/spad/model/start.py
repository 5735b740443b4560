"""What sampling starts from: a dark blob on white, and noise."""

from collections.abc import Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


def gaussian_blob(height: int, width: int, sigma: float) -> Tensor:
    """Dark Gaussian blob with white corners, (3, height, width) in [-1, 1].

    Sampling starts from it with noise added, which keeps backgrounds white. `sigma` is in units of
    half the image.

    Source: the release's `blob_sigma`; the paper does not mention it.
    """
    y = torch.linspace(-1, 1, height)[:, None]
    x = torch.linspace(-1, 1, width)[None, :]
    density = torch.exp(-(x**2 + y**2) / (2 * sigma**2))
    density = density / density.max()
    return (1 - 2 * (density - density.min())).expand(3, height, width)


def starting_noise(
    like: Tensor,
    seed: int | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    latents: Tensor | None,
    sets_per_prompt: int,
) -> Tensor:
    """Noise of a standard normal distribution, of the shape of `like`, (b, v, c, h, w).

    Args:
        seed, generator, latents: its source, as in a call of `SPADPipeline`; one of them at most.
        sets_per_prompt: image sets of every prompt.

    Raises: ValueError: two sources, or one of another size.
    """
    given = {"seed": seed, "generator": generator, "latents": latents}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ValueError(f"expected one source of noise, got {' and '.join(names)}")
    if latents is not None:
        if latents.shape not in (like.shape, like[:1].shape):
            raise ValueError(
                f"expected latents of shape {tuple(like.shape)}, got {tuple(latents.shape)}"
            )
        return latents.to(like).expand_as(like)
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            generator = list(generator)
            if len(generator) != len(like):
                raise ValueError(
                    f"expected {len(like)} generators, one per image set, got {len(generator)}"
                )
        return randn_tensor(like.shape, generator, like.device, like.dtype)
    # Drawn on the CPU, so that a seed means the same on every device.
    noise = [
        torch.randn(like[:1].shape, generator=torch.Generator().manual_seed((seed or 0) + k))
        for k in range(sets_per_prompt)
    ]
    return torch.cat(noise).repeat(len(like) // sets_per_prompt, 1, 1, 1, 1).to(like)
