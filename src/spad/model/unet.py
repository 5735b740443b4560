"""MultiViewUNet: diffusers' text-to-image UNet that denoises all views of an object together."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn import functional as F

from spad.attention import AttentionMask
from spad.model.depth_input import LARGEST_PATCH, ConvInWithSummand, DepthProjection
from spad.model.processors import (
    MultiViewAttnProcessor,
    TextAttnProcessor,
    ViewConditioning,
)
from spad.model.ray_encoding import PLUCKER_CHANNELS, RayEncoding
from spad.model.text import TextEmbeddings

# Where Plücker coordinates enter: a map in the features, the queries and keys, both, or nowhere.
RAYS = ("map", "qk", "both", "none")
_BLOCK_CALL = inspect.signature(BasicTransformerBlock.forward)


class PluckerProjection(nn.Module):
    """A learned linear function of the Plücker map, added to what `proj_in` of a transformer gives.

    The release concatenates the map to the features before a widened 1×1 `proj_in`. That is the
    same sum, but here `proj_in` keeps its shape, so Stable Diffusion weights and LoRAs fit, and
    the second summand is computed once a run. Zero at the start, as in the release.
    """

    def __init__(self, name: str, channels: int):
        super().__init__()
        self.name = name
        self.linear = nn.Conv2d(PLUCKER_CHANNELS, channels, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def features(self, plucker: Tensor, height: int, width: int) -> Tensor:
        """Plücker map (b, v, 6, h, w) of any resolution -> summand (b, v, height * width, c)."""
        batch_views = plucker.shape[:2]
        resized = F.interpolate(
            plucker.flatten(0, 1), (height, width), mode="bilinear", align_corners=False
        )
        projected = self.linear(resized.to(self.linear.weight.dtype))
        return projected.flatten(-2).mT.unflatten(0, batch_views)

    def forward(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Forward pre-hook of the first block, whose input (b * v, h * w, c) `proj_in` gave."""
        # Gradient checkpointing passes by position what is else passed by name.
        call = _BLOCK_CALL.bind(block, *args, **kwargs)
        views: ViewConditioning = call.arguments["cross_attention_kwargs"]["views"]
        features = views.plucker_features.get(self.name)
        if features is not None:
            features = features if isinstance(features, Tensor) else features()
            hidden = call.arguments["hidden_states"].unflatten(0, (-1, views.num_views))
            call.arguments["hidden_states"] = (hidden + features).flatten(0, 1)
        return call.args[1:], call.kwargs


def add_multiview_attention(
    transformer: Transformer2DModel, name: str, rays: str = "map", view_attention: str = "shared"
) -> None:
    """Let a transformer attend over all views, by its own or by added layers, and take their rays
    as one of `RAYS`.

    Its calls then need `cross_attention_kwargs={"views": ...}`, a `ViewConditioning`.
    """
    for number, block in enumerate(transformer.transformer_blocks):
        assert isinstance(block, BasicTransformerBlock) and block.attn2 is not None
        own_name = f"{name}.{number}"
        if view_attention == "added":
            across = copy.deepcopy(block.attn1)
            block.attn1.across_views = across
            assert across.to_out is not None
            for weight in across.to_out[0].parameters():
                nn.init.zeros_(weight)
        # diffusers takes any callable, whatever its annotation says.
        views_processor = MultiViewAttnProcessor(own_name)
        block.attn1.set_processor(views_processor)  # pyright: ignore[reportArgumentType]
        text_processor = TextAttnProcessor(own_name)
        block.attn2.set_processor(text_processor)  # pyright: ignore[reportArgumentType]
        if rays in ("qk", "both"):
            heads = block.attn1.heads
            encoding = RayEncoding(own_name, heads, block.attn1.inner_dim // heads)
            block.attn1.ray_encoding = encoding
    if rays in ("map", "both"):
        transformer.plucker = PluckerProjection(name, transformer.inner_dim)
        first = transformer.transformer_blocks[0]
        first.register_forward_pre_hook(transformer.plucker, with_kwargs=True)


def copy_attention(unet: nn.Module) -> None:
    """Let added attention between views begin with the queries, keys and values of the layers that
    it stands beside.
    """
    for module in unet.modules():
        across = getattr(module, "across_views", None)
        if isinstance(across, Attention):
            for layer in ("to_q", "to_k", "to_v"):
                getattr(across, layer).load_state_dict(getattr(module, layer).state_dict())


class MultiViewUNet(UNet2DConditionModel):
    """`UNet2DConditionModel` over (b, v, c, h, w): v views of each object, denoised together.

    Self-attention sees the tokens of all views under a mask, rays enter every transformer, a camera
    vector is embedded beside the timestep, and every view has a timestep of its own. New weights
    that add to features start at zero, so a newly widened Stable Diffusion UNet gives its former
    output for one view. Weights of a plain UNet load by name. Conditioning is an argument of every
    call, so threads may share a model.

    Args (all others are those of `UNet2DConditionModel`, for example Stable Diffusion's):
        camera_vector: "absolute" or "relative" to view 0; see `spad.model.conditioning`.
        camera_intrinsics: whether the camera vector ends with four numbers of the intrinsics.
        use_camera_embedding: whether the camera vector is embedded at all.
        camera_embedding_dim: hidden width of the camera embedding. Default: that of the timestep
            embedding.
        rays: where Plücker coordinates enter. "map": added to the features before every
            transformer, see `PluckerProjection`. "qk": added to the queries and keys of the
            attention between views, see `RayEncoding`. "both", or "none".
        view_attention: "shared": the self-attention of the blocks sees all views. "added": it sees
            one, and a copy of it sees all, whose output, zero at the start, is added: a frozen base
            model stays what it is. See `copy_attention`.
        epipolar: "exact" for epipolar masks, "original" for those of the released weights (see
            `spad.geometry.released_masks`), "none" for attention to all tokens of all views.
        band_width: width of the exact epipolar band in latent pixels.
        ball_radius: radius of a ball about the origin that holds the object, in world units: exact
            bands end where rays leave it. None: they do not end.
        depth_patch: pixels along the side of the image area behind a latent, for a model that takes
            depth maps; see `DepthProjection`. 0: it takes none.

    Attributes:
        attention_backend: backend of the attention between views, one of
            `spad.attention.BACKENDS`; None: the fastest. Results differ by rounding only.

    Raises: ValueError: `camera_vector`, `rays`, `view_attention`, `epipolar` or `depth_patch` has
        another value.

    Source: SPAD, sections 3.1 to 3.3; MV-Adapter (Huang et al. 2024), section 4.2, for added
    attention.
    """

    # What saved folders name.
    __module__ = "spad.model"

    def __init__(
        self,
        camera_vector: str = "absolute",
        camera_intrinsics: bool = False,
        use_camera_embedding: bool = True,
        camera_embedding_dim: int | None = None,
        rays: str = "map",
        view_attention: str = "shared",
        epipolar: str = "exact",
        band_width: float = 3.0,
        ball_radius: float | None = None,
        depth_patch: int = 0,
        **unet_config,
    ):
        super().__init__(**unet_config)
        if camera_vector not in ("absolute", "relative"):
            raise ValueError(f"expected camera_vector absolute or relative, got {camera_vector!r}")
        if rays not in RAYS:
            raise ValueError(f"expected rays {', '.join(RAYS[:-1])} or {RAYS[-1]}, got {rays!r}")
        if view_attention not in ("shared", "added"):
            raise ValueError(f"expected view_attention shared or added, got {view_attention!r}")
        if epipolar not in ("exact", "original", "none"):
            raise ValueError(f"expected epipolar exact, original or none, got {epipolar!r}")
        if not isinstance(depth_patch, int) or not 0 <= depth_patch <= LARGEST_PATCH:
            raise ValueError(
                f"expected depth_patch of 0 to {LARGEST_PATCH} pixels, got {depth_patch!r}"
            )
        self.register_to_config(
            camera_vector=camera_vector,
            camera_intrinsics=camera_intrinsics,
            use_camera_embedding=use_camera_embedding,
            camera_embedding_dim=camera_embedding_dim,
            rays=rays,
            view_attention=view_attention,
            epipolar=epipolar,
            band_width=band_width,
            ball_radius=ball_radius,
            depth_patch=depth_patch,
        )
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
                add_multiview_attention(module, name, rays, view_attention)
        self.depth_projection = None
        if depth_patch:
            plain = self.conv_in
            self.conv_in = ConvInWithSummand(
                plain.in_channels, plain.out_channels, plain.kernel_size, padding=plain.padding
            )
            self.depth_projection = DepthProjection(depth_patch, plain.out_channels)

    @classmethod
    def extract_init_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """Arguments of the class in a configuration, by their present names."""
        config = dict(config_dict)
        # Models saved before 0.1 say only whether they have the map.
        if "use_plucker" in config:
            config["rays"] = "map" if config.pop("use_plucker") else "none"
        return super().extract_init_dict(config, **kwargs)

    @staticmethod
    def _get_init_keys(input_class) -> set[str]:
        # diffusers drops configuration keys that are not named in __init__; ours forwards them.
        parameters = inspect.signature(UNet2DConditionModel.__init__).parameters
        own = inspect.signature(input_class.__init__).parameters
        return (set(parameters) | set(own)) - {"unet_config"}

    def set_attn_processor(self, processor: Any) -> None:
        """Not possible: views attend to each other by processors of this network.

        Raises: ValueError: always.
        """
        raise ValueError(
            "expected the attention processors of MultiViewUNet, by which views see each other, "
            "got others; to save memory try enable_model_cpu_offload()"
        )

    def set_attention_slice(self, slice_size: str | int | list[int] | None = "auto") -> None:
        """Not possible: attention in slices would see one view at a time.

        Raises: ValueError: for any size but None.
        """
        if slice_size is not None:
            raise ValueError(
                "expected no attention slicing, as views see each other; to save memory try "
                "enable_model_cpu_offload()"
            )

    def set_use_memory_efficient_attention_xformers(
        self, valid: bool, attention_op: object = None
    ) -> None:
        """Not possible, as `set_attn_processor`. Raises: ValueError: always."""
        self.set_attn_processor(None)

    def attention_grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """Sizes at which transformers run, finest first, for latents of height x width."""
        sizes = _level_sizes(len(self.config["down_block_types"]), height, width)
        names = [name for name, m in self.named_modules() if isinstance(m, Transformer2DModel)]
        return [sizes[level] for level in sorted({_level(name, len(sizes)) for name in names})]

    @apply_forward_hook
    def prepare_views(
        self,
        num_views: int,
        camera: Tensor | None = None,
        plucker: Tensor | None = None,
        masks: Mapping[int, AttentionMask] | None = None,
        text: Tensor | TextEmbeddings | None = None,
        rays: Sequence[Tensor] = (),
        image_size: tuple[int, int] | None = None,
        near: Tensor | None = None,
    ) -> ViewConditioning:
        """Conditioning of the layers on cameras and text, computed once for all denoising steps.

        Args:
            camera: camera vectors (b, v, camera_dim).
            plucker: Plücker map (b, v, 6, h, w) at the resolution of the latents.
            masks: tokens per view -> attention mask; see `spad.attention.masks`.
            text: (b, length, d), if it is the same in all steps. Default: that of `forward`. UNets
                such as Stable Diffusion XL's need it here, with its pooled embedding.
            rays: Plücker coordinates (b, v, h * w, 6) of the rays through the tokens' centers, at
                each of `attention_grids`; none for a model without rays in queries and keys.
            image_size: height and width in pixels, which UNets such as Stable Diffusion XL's read.
            near: `nearness` (b, v, h, w) of the pixels of images, for a model that takes depth;
                None: the shape is not given.

        Raises: ValueError: such a UNet was given no pooled text or no image size.
        """
        if not isinstance(text, TextEmbeddings):
            text = None if text is None else TextEmbeddings(text)
        # Layers that are moved to the device in groups are there only while they run.
        is_later = _is_offloaded_in_groups(self)
        plucker_features = {}
        if plucker is not None:
            sizes = _level_sizes(len(self.config["down_block_types"]), *plucker.shape[-2:])
            for module in self.modules():
                if isinstance(module, PluckerProjection):
                    size = sizes[_level(module.name, len(sizes))]
                    features = partial(module.features, plucker, *size)
                    plucker_features[module.name] = features if is_later else features()
        ray_encodings = {}
        if rays:
            num_levels = len(self.config["down_block_types"])
            encoders = [module for module in self.modules() if isinstance(module, RayEncoding)]
            levels = sorted({_level(one.name, num_levels) for one in encoders})
            by_level = dict(zip(levels, rays, strict=True))
            for encoder in encoders:
                encoded = partial(encoder, by_level[_level(encoder.name, num_levels)])
                ray_encodings[encoder.name] = encoded if is_later else encoded()
        depth_features = None
        if near is not None:
            assert self.depth_projection is not None, "the model takes no depth"
            projected = partial(self.depth_projection, near)
            depth_features = projected if is_later else projected()
        camera_embedding = None
        if self.camera_embedding is not None and camera is not None:
            embedding = partial(self.camera_embedding, camera.to(self.dtype))
            camera_embedding = embedding if is_later else embedding()
        text_keys_values = {}
        if text is not None and not is_later:
            for module in self.modules():
                if isinstance(module, Attention):
                    processor: object = module.processor
                    if isinstance(processor, TextAttnProcessor):
                        keys_values = processor.keys_values(module, text.tokens)
                        text_keys_values[processor.name] = keys_values
        text_embedding = None
        if self.config["addition_embed_type"] == "text_time":
            if text is None or text.pooled is None or image_size is None:
                raise ValueError(
                    "expected pooled text and an image size for this UNet, got none; give text and "
                    "image_size to prepare_views"
                )
            embedding = partial(self._text_embedding, text.pooled, image_size)
            text_embedding = embedding if is_later else embedding()
        return ViewConditioning(
            num_views,
            camera_embedding,
            dict(masks or {}),
            plucker_features,
            self.attention_backend,
            text_keys_values,
            ray_encodings,
            text_embedding,
            depth_features,
        )

    def _text_embedding(self, pooled: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Pooled text (b, d) and the size of images -> (b, width).

        The images were that large before they were cropped, nothing was cut off, and they are to
        be that large.
        """
        time_ids = torch.tensor([*image_size, 0, 0, *image_size], device=pooled.device)
        added = {"text_embeds": pooled, "time_ids": time_ids.expand(len(pooled), -1)}
        embedding = super().get_aug_embed(pooled.to(self.dtype), pooled, added)
        assert embedding is not None
        return embedding

    # Views are no option of this network, so its calls are not those of the base class.
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | TextEmbeddings,
        views: ViewConditioning,
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Predict noise or velocity.

        Args:
            sample: (b, v, c, h, w).
            timestep: one for all, (b,), or (b, v): a view may be held at another noise level.
            encoder_hidden_states: text, (b, length, d) for all views or (b, v, length, d).
            views: from `prepare_views`; a leading b of 1 serves any batch.
            cross_attention_kwargs, kwargs: as `UNet2DConditionModel` takes them.

        Returns: `UNet2DConditionOutput` with `sample` (b, v, c, h, w), or a tuple of it.

        Raises: ValueError: `sample` has other views than were prepared.
        """
        batch, num_views = sample.shape[:2]
        if num_views != views.num_views:
            raise ValueError(f"expected {views.num_views} views as prepared, got {num_views}")
        timestep = torch.as_tensor(timestep, device=sample.device)
        if timestep.ndim == 1 and len(timestep) == batch:
            timestep = timestep[:, None]
        timestep = timestep.expand(batch, num_views).reshape(-1)
        if isinstance(encoder_hidden_states, TextEmbeddings):
            encoder_hidden_states = encoder_hidden_states.tokens
        if encoder_hidden_states.ndim == 4:
            encoder_hidden_states = encoder_hidden_states.flatten(0, 1)
        cross_attention_kwargs = {**(cross_attention_kwargs or {}), "views": views}
        added: dict[str, Any] = {"views": views}
        cameras, depth = views.camera_embedding, views.depth_features
        if depth is not None:
            depth = depth if isinstance(depth, Tensor) else depth()
            depth = depth.to(sample.dtype).repeat(batch // len(depth), 1, 1, 1, 1)
            sample = torch.cat([sample, depth], dim=2)
        (output,) = super().forward(
            sample.flatten(0, 1),
            timestep,
            encoder_hidden_states,
            class_labels=cameras if cameras is None or isinstance(cameras, Tensor) else cameras(),
            cross_attention_kwargs=cross_attention_kwargs,
            added_cond_kwargs=added,
            return_dict=False,
            **kwargs,
        )
        output = output.unflatten(0, (batch, num_views))
        return UNet2DConditionOutput(sample=output) if return_dict else (output,)

    def get_aug_embed(
        self, emb: Tensor, encoder_hidden_states: Tensor, added_cond_kwargs: dict
    ) -> Tensor | None:
        """Pooled text or the like, (b * v, width); a text serves all views of its object."""
        prepared = added_cond_kwargs["views"].text_embedding
        if prepared is not None:
            pooled = prepared if isinstance(prepared, Tensor) else prepared()
        else:
            pooled = super().get_aug_embed(emb, encoder_hidden_states, added_cond_kwargs)
        if not isinstance(pooled, Tensor):
            return pooled
        return pooled.repeat_interleave(len(emb) // len(pooled), dim=0)

    def get_class_embed(self, sample: Tensor, class_labels: Tensor | None) -> Tensor | None:
        """Camera embedding (b, v, width) -> (b * v, width), which joins the timestep embedding."""
        if class_labels is None:
            return None
        cameras = class_labels.to(sample.dtype).flatten(0, 1)
        return cameras.repeat(len(sample) // len(cameras), 1)


def _is_offloaded_in_groups(module: nn.Module) -> bool:
    registries = (getattr(one, "_diffusers_hook", None) for one in module.modules())
    return any(one is not None and one.get_hook("group_offloading") for one in registries)


def _level_sizes(num_levels: int, height: int, width: int) -> list[tuple[int, int]]:
    """Height and width of the features at every level; each halves the one before, rounding up."""
    return [(-(-height // 2**level), -(-width // 2**level)) for level in range(num_levels)]


def _level(module_name: str, num_levels: int) -> int:
    """Level of a module inside a UNet block; 0 is the finest."""
    block, index = module_name.split(".")[:2]
    if block == "mid_block":
        return num_levels - 1
    return int(index) if block == "down_blocks" else num_levels - 1 - int(index)
