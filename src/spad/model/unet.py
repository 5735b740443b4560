"""MultiViewUNet: diffusers' text-to-image UNet, denoising all views of an object jointly."""

import inspect
from collections.abc import Mapping

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn
from torch.nn import functional as F

from spad.attention import AttentionMask
from spad.model.processors import (
    MultiViewAttnProcessor,
    TextAttnProcessor,
    ViewConditioning,
    ViewContext,
)

PLUCKER_CHANNELS = 6

# A saved pipeline names this module, and diffusers loads a part by a base class it finds here.
__all__ = ["ModelMixin", "MultiViewUNet", "PluckerProjection", "add_multiview_attention"]


class PluckerProjection(nn.Module):
    """Adds a learned linear function of the Plücker map to the output of a `proj_in`.

    The release concatenates the map to the features before a widened 1×1 `proj_in`. That is the
    same sum, but here `proj_in` keeps its shape, so Stable Diffusion weights and LoRAs fit, and
    the second summand is computed once a run. Zero at the start, as in the release.
    """

    def __init__(self, name: str, channels: int, context: ViewContext):
        super().__init__()
        self.name, self.context = name, context
        self.linear = nn.Conv2d(PLUCKER_CHANNELS, channels, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def term(self, plucker: Tensor, height: int, width: int) -> Tensor:
        """Plücker map (b, v, 6, h, w) of any resolution -> summand (b, v, c, height, width)."""
        batch_views = plucker.shape[:2]
        resized = F.interpolate(
            plucker.flatten(0, 1), (height, width), mode="bilinear", align_corners=False
        )
        return self.linear(resized.to(self.linear.weight.dtype)).unflatten(0, batch_views)

    def forward(self, _proj_in: nn.Module, _inputs: tuple, projected: Tensor) -> Tensor:
        """Forward hook of `proj_in`, whose output is (b * v, c, h, w) or (b * v, h * w, c)."""
        views = self.context.views
        term = views.plucker_features.get(self.name)
        if term is None:
            return projected
        if projected.ndim == 3:
            term = term.flatten(-2).transpose(-1, -2)
        return (projected.unflatten(0, (-1, views.num_views)) + term).flatten(0, 1)


def add_multiview_attention(
    transformer: Transformer2DModel, name: str, context: ViewContext, use_plucker: bool = True
) -> None:
    """Let the self-attention of a transformer see all views, and Plücker maps enter it."""
    for number, block in enumerate(transformer.transformer_blocks):
        block.attn1.set_processor(MultiViewAttnProcessor(context))
        block.attn2.set_processor(TextAttnProcessor(f"{name}.{number}", context))
    if use_plucker:
        transformer.plucker = PluckerProjection(name, transformer.inner_dim, context)
        transformer.proj_in.register_forward_hook(transformer.plucker)


class MultiViewUNet(UNet2DConditionModel):
    """`UNet2DConditionModel` over (b, v, c, h, w): v views of each object, denoised together.

    Self-attention sees the tokens of all views under a mask, Plücker coordinates enter every
    transformer, a camera vector is embedded beside the timestep, and every view has a timestep of
    its own. New weights start at zero where they add to the features, so a freshly widened Stable
    Diffusion UNet gives the same output for one view. Weights of a plain UNet load by name.

    Args (all others are those of `UNet2DConditionModel`, for example Stable Diffusion's):
        camera_dim: length of the camera vector; 0 leaves the camera embedding out.
        camera_vector: "absolute" or "relative" to view 0; with `camera_intrinsics`, four numbers
            of the intrinsics are appended. See `spad.model.conditioning`.
        camera_embedding_dim: hidden width of the camera embedding; by default that of the timestep
            embedding.
        use_plucker: whether Plücker coordinates enter the transformers.
        epipolar: "exact" for epipolar masks, "original" for those of the released weights (see
            `spad.geometry.released_masks`), "none" for attention to all tokens of all views.
        band_width: width of the exact epipolar band in latent pixels.
        ball_radius: of a ball about the origin that holds the object, world units: exact bands end
            where rays leave it. None: they go on.

    Attributes:
        attention_backend: how attention between views is computed, one of
            `spad.attention.BACKENDS`; None, the fastest. Changes no result but by rounding.

    Source: SPAD, sections 3.1 to 3.3.
    """

    # What saved folders name.
    __module__ = "spad.model"

    def __init__(
        self,
        camera_vector: str = "absolute",
        camera_intrinsics: bool = False,
        use_camera_embedding: bool = True,
        camera_embedding_dim: int | None = None,
        use_plucker: bool = True,
        epipolar: str = "exact",
        band_width: float = 3.0,
        ball_radius: float | None = None,
        **unet_config,
    ):
        super().__init__(**unet_config)
        if camera_vector not in ("absolute", "relative"):
            raise ValueError(f"expected camera_vector absolute or relative, got {camera_vector!r}")
        if epipolar not in ("exact", "original", "none"):
            raise ValueError(f"expected epipolar exact, original or none, got {epipolar!r}")
        self.register_to_config(
            camera_vector=camera_vector,
            camera_intrinsics=camera_intrinsics,
            use_camera_embedding=use_camera_embedding,
            camera_embedding_dim=camera_embedding_dim,
            use_plucker=use_plucker,
            epipolar=epipolar,
            band_width=band_width,
            ball_radius=ball_radius,
        )
        self.context = ViewContext()
        self.attention_backend: str | None = None
        self.camera_embedding = None
        if use_camera_embedding:
            width = self.time_embedding.linear_2.out_features
            self.camera_embedding = TimestepEmbedding(
                8 if camera_intrinsics else 4, camera_embedding_dim or width, out_dim=width
            )
            nn.init.zeros_(self.camera_embedding.linear_2.weight)
            nn.init.zeros_(self.camera_embedding.linear_2.bias)
        for name, module in list(self.named_modules()):
            if isinstance(module, Transformer2DModel):
                add_multiview_attention(module, name, self.context, use_plucker)

    @staticmethod
    def _get_init_keys(input_class) -> set[str]:
        # diffusers drops configuration keys that are not named in __init__; ours forwards them.
        parameters = inspect.signature(UNet2DConditionModel.__init__).parameters
        own = inspect.signature(input_class.__init__).parameters
        return (set(parameters) | set(own)) - {"unet_config"}

    def attention_grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """Sizes at which transformers run, finest first, for latents of height x width."""
        sizes = _level_sizes(len(self.config.down_block_types), height, width)
        names = [name for name, m in self.named_modules() if isinstance(m, Transformer2DModel)]
        return [sizes[level] for level in sorted({_level(name, len(sizes)) for name in names})]

    def prepare_views(
        self,
        num_views: int,
        camera: Tensor | None = None,
        plucker: Tensor | None = None,
        masks: Mapping[int, AttentionMask] | None = None,
        text: Tensor | None = None,
    ) -> ViewConditioning:
        """Everything the layers need of cameras and text, computed once for all denoising steps.

        Args:
            camera: (b, v, camera_dim) camera vectors.
            plucker: (b, v, 6, h, w) at the resolution of the latents.
            masks: tokens per view -> what each token may attend to; see `spad.attention.masks`.
            text: (b, length, d), the same in all steps; None if `forward` is to read its own.
        """
        terms = {}
        if plucker is not None:
            sizes = _level_sizes(len(self.config.down_block_types), *plucker.shape[-2:])
            for module in self.modules():
                if isinstance(module, PluckerProjection):
                    size = sizes[_level(module.name, len(sizes))]
                    terms[module.name] = module.term(plucker, *size)
        camera_embedding = None
        if self.camera_embedding is not None and camera is not None:
            camera_embedding = self.camera_embedding(camera.to(self.dtype))
        text_keys_values = {}
        if text is not None:
            for module in self.modules():
                processor = getattr(module, "processor", None)
                if isinstance(processor, TextAttnProcessor):
                    text_keys_values[processor.name] = processor.term(module, text)
        return ViewConditioning(
            num_views,
            camera_embedding,
            dict(masks or {}),
            terms,
            self.attention_backend,
            text_keys_values,
        )

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        views: ViewConditioning,
        return_dict: bool = True,
        **kwargs,
    ):
        """Predict noise or velocity.

        Args:
            sample: (b, v, c, h, w).
            timestep: one for all, (b,), or (b, v): a view may be held at another noise level.
            encoder_hidden_states: text, (b, length, d) for all views or (b, v, length, d).
            views: from `prepare_views`; a leading b of 1 serves any batch.

        Returns: `UNet2DConditionOutput` with `sample` (b, v, c, h, w).
        """
        batch, num_views = sample.shape[:2]
        if num_views != views.num_views:
            raise ValueError(f"expected {views.num_views} views as prepared, got {num_views}")
        timestep = torch.as_tensor(timestep, device=sample.device)
        if timestep.ndim == 1 and len(timestep) == batch:
            timestep = timestep[:, None]
        timestep = timestep.expand(batch, num_views).reshape(-1)
        if encoder_hidden_states.ndim == 4:
            encoder_hidden_states = encoder_hidden_states.flatten(0, 1)
        self.context.views = views
        output = (
            super()
            .forward(
                sample.flatten(0, 1),
                timestep,
                encoder_hidden_states,
                return_dict=False,
                **kwargs,
            )[0]
            .unflatten(0, (batch, num_views))
        )
        return UNet2DConditionOutput(sample=output) if return_dict else (output,)

    def get_aug_embed(
        self, emb: Tensor, encoder_hidden_states: Tensor, added_cond_kwargs: dict
    ) -> Tensor | None:
        """Pooled text or the like, (b * v, width); a text serves all views of its object."""
        term = super().get_aug_embed(emb, encoder_hidden_states, added_cond_kwargs)
        if not isinstance(term, Tensor):
            return term
        return term.repeat_interleave(len(emb) // len(term), dim=0)

    def get_class_embed(self, sample: Tensor, class_labels: Tensor | None) -> Tensor | None:
        """Camera embedding (b * v, width), which the UNet adds to the timestep embedding."""
        term = self.context.views.camera_embedding
        if term is None:
            return super().get_class_embed(sample, class_labels)
        copies = len(sample) // (term.shape[0] * term.shape[1])
        return term.to(sample.dtype).repeat(copies, 1, 1).flatten(0, 1)


def _level_sizes(num_levels: int, height: int, width: int) -> list[tuple[int, int]]:
    """Feature map sizes from the latents down; every level halves, rounding up."""
    return [(-(-height // 2**level), -(-width // 2**level)) for level in range(num_levels)]


def _level(module_name: str, num_levels: int) -> int:
    """Resolution level, 0 the finest, of a module inside a UNet block."""
    block, index = module_name.split(".")[:2]
    if block == "mid_block":
        return num_levels - 1
    return int(index) if block == "down_blocks" else num_levels - 1 - int(index)
