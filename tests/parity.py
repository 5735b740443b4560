"""How far spad is from the numbers recorded from the original code; prints docs/parity.md.

    python tests/parity.py FOLDER > docs/parity.md

FOLDER holds the reference files (`SPAD_SHARED/golden` in the tests).
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from safetensors.torch import load_file
from torch import Tensor

from spad.attention import DenseMask
from spad.cameras import Cameras, to_blender
from spad.geometry import plucker_map
from spad.geometry.released_masks import flat_resize, released_mask
from spad.hub.config import ConvertConfig
from spad.hub.convert import convert_checkpoint, original_unet, release_scheduler, split_widened
from spad.hub.registry import load_model
from spad.model import MultiViewUNet, SPADPipeline
from spad.model.conditioning import camera_vectors
from spad.model.processors import MultiViewAttnProcessor, ViewConditioning
from spad.model.start import gaussian_blob
from spad.model.unet import add_multiview_attention
from spad.model.word_tokenizer import tokenize

FOV_RAD = 0.702769935131073
# Sets for which the release is defined; SPAD's README of the recordings says which are not.
DEFINED = (
    "ortho4 infer8 rand2a rand2b rand3 epipole_inside near_top near_top_both near_top_and_bottom"
).split()
# Its masks are undefined here, its rays are not.
DEGENERATE = ("identical2", "identical_mod360", "opposite2_equator", "opposite2_antipodal")
NETWORK, TRAJECTORY, GEOMETRY = 1e-4, 1e-3, 1e-5


@dataclass(frozen=True)
class Row:
    """One comparison: `error` may be at most `bound`, in `unit`."""

    level: str
    tensor: str
    error: float
    bound: float
    unit: str = "max relative error"


def relative_error(ours: Tensor, recorded: Tensor) -> float:
    """Largest difference, in units of the largest recorded magnitude."""
    assert ours.shape == recorded.shape, (ours.shape, recorded.shape)
    scale = recorded.double().abs().max().clamp(min=1e-30)
    return ((ours.double() - recorded.double()).abs().max() / scale).item()


def release_cameras(polar_deg, azimuth_deg, size: int = 32) -> Cameras:
    """Cameras as the release names them: polar angle from +z, on its sphere, with its lens."""
    elevation = [90 - polar for polar in polar_deg]
    return Cameras.orbit(
        elevation, list(azimuth_deg), radius=3.5, fov_rad=FOV_RAD, height=size, width=size
    )


class Golden:
    """The folder of recorded files."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cache  # noqa: B019, one folder per process
    def arrays(self, name: str) -> dict[str, Tensor]:
        with np.load(self.folder / f"{name}.npz") as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays.files}

    @cache  # noqa: B019
    def facts(self, name: str) -> dict:
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))

    def cameras(self, name: str) -> Cameras:
        facts = self.facts(f"geom_{name}")
        return release_cameras(facts["elevations_deg"], facts["azimuths_deg"])

    def mask(self, name: str) -> Tensor:
        return unpacked(self.arrays(f"geom_{name}")["mask_packed"])


def unpacked(bits: Tensor) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits.numpy(), axis=-1).astype(bool))


def camera_rows(golden: Golden) -> Iterator[Row]:
    recorded = golden.arrays("geom_cameras")
    polar, azimuth = recorded["angles_deg"].T.tolist()
    matrix_world, _, _ = to_blender(release_cameras(polar, azimuth))
    yield Row(
        "cameras",
        "49 Blender poses",
        relative_error(matrix_world, recorded["blender"]),
        GEOMETRY,
    )
    recorded, sets = golden.arrays("generate_batch"), golden.facts("generate_batch")["sets"]
    for name, angles in sets.items():
        cameras = release_cameras(angles["elevations_deg"], angles["azimuths_deg"])
        for relative, kind in ((True, "abs0"), (False, "abs1")):
            vectors = camera_vectors(cameras, len(cameras), relative, with_intrinsics=True)[0]
            # Recorded for every pair (i, j), camera i seen from j; the model reads j = 0.
            expected = recorded[f"{name}_{kind}_cam"][:, 0]
            what = f"{name}, {'relative' if relative else 'absolute'}"
            yield Row("camera vectors", what, relative_error(vectors[:, :4], expected), GEOMETRY)
            error = relative_error(vectors[:, 4:], recorded[f"{name}_{kind}_intr"])
            yield Row("camera vectors", f"{what}, intrinsics", error, GEOMETRY)
        packed = np.packbits(released_mask(cameras).numpy(), axis=-1)
        digest = hashlib.sha256(packed.tobytes()).digest()
        is_same = digest == bytes(recorded[f"{name}_mask_sha"].tolist())
        yield Row("masks", f"{name}, hash of the whole mask", 1 - is_same, 0, "is another")


def mask_rows(golden: Golden) -> Iterator[Row]:
    for name in DEFINED:
        cameras, mask = golden.cameras(name), golden.mask(name)
        views = len(cameras)
        differ = (released_mask(cameras) != mask).view(views, 1024, views, 1024).any(-1)
        close = near_a_rounding_border(golden, name)
        what = f"{name}, {views} views"
        unexplained = int((differ & ~close).sum())
        yield Row("masks", what, unexplained, 0, "rows that differ")
        yield Row(
            "masks", f"{what}, line ends near a border", int(differ.sum()), 3, "rows that differ"
        )
    sizes, facts = golden.arrays("geom_masks_sizes"), golden.facts("geom_masks_sizes")
    for size in (32, 16, 8):
        for dilate in (False, True):
            differ = 0
            for name, pair in facts["pairs_deg"].items():
                polar, azimuth = zip(pair["src"], pair["tgt"], strict=True)
                ours = released_mask(release_cameras(polar, azimuth, size), size, dilate)
                recorded = unpacked(sizes[f"{name}_s{size}_dil{int(dilate)}"])
                differ += int((ours[: size**2, size**2 :] != recorded).any(-1).sum())
            what = f"4 pairs at {size}, {'dilated' if dilate else 'not dilated'}"
            yield Row("masks", what, differ, 0, "rows that differ")
    recorded = golden.arrays("attention")
    both = torch.stack([golden.mask("rand2a"), golden.mask("rand2b")])
    for size in (16, 8):
        ours = flat_resize(both, 2, size**2)
        differ = int((ours != unpacked(recorded[f"interp_mask_{size}"])).any(-1).sum())
        yield Row("masks", f"resized from 32 to {size}", differ, 0, "rows that differ")


def near_a_rounding_border(golden: Golden, name: str) -> Tensor:
    """bool (v_query, n, v_key): an end of the recorded line is within 1e-3 of where it rounds."""
    arrays, pairs = golden.arrays(f"geom_{name}"), golden.facts(f"geom_{name}")["pairs"]
    shifted = torch.stack([arrays["points_one"], arrays["points_two"]]) - 0.5
    close = ((shifted - shifted.round()).abs() < 1e-3).any(-1).any(0)
    views = len(golden.facts(f"geom_{name}")["azimuths_deg"])
    result = torch.zeros(views, close.shape[-1], views, dtype=torch.bool)
    for (query, key), rows in zip(pairs, close, strict=True):
        result[query, :, key] = rows
    return result


def plucker_rows(golden: Golden) -> Iterator[Row]:
    for name in (*DEFINED, *DEGENERATE):
        ours = plucker_map(golden.cameras(name), 32, 32)
        error = relative_error(ours, golden.arrays(f"geom_{name}")["plucker"])
        yield Row("Plücker", name, error, GEOMETRY)
    sizes, facts = golden.arrays("geom_masks_sizes"), golden.facts("geom_masks_sizes")
    for size in (32, 16, 8):
        errors = []
        for name, pair in facts["pairs_deg"].items():
            ours = plucker_map(
                release_cameras([pair["src"][0]], [pair["src"][1]], size), size, size
            )
            errors.append(relative_error(ours[0], sizes[f"{name}_s{size}_plucker_src"]))
        yield Row("Plücker", f"4 cameras at {size}", max(errors), GEOMETRY)


def two_objects(golden: Golden) -> tuple[dict[int, DenseMask], Tensor]:
    """Masks by tokens per view, and Plücker maps, of the recordings' batch of two objects."""
    mask = torch.stack([golden.mask("rand2a"), golden.mask("rand2b")])
    plucker = [golden.arrays(f"geom_{name}")["plucker"] for name in ("rand2a", "rand2b")]
    masks = {n: DenseMask(flat_resize(mask, 2, n), 2) for n in (1024, 256, 64)}
    return masks, torch.stack(plucker)


def transformer_block(golden: Golden) -> BasicTransformerBlock:
    weights = load_file(golden.folder / "attention_weights.safetensors")
    block = BasicTransformerBlock(64, 2, 32, cross_attention_dim=64).eval()
    own = {k.removeprefix("block."): v for k, v in weights.items() if k.startswith("block.")}
    block.load_state_dict(own)
    block.attn1.set_processor(MultiViewAttnProcessor("block"))
    return block


def transformer(golden: Golden) -> Transformer2DModel:
    weights = load_file(golden.folder / "attention_weights.safetensors")
    prefix = "transformer."
    own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    model = Transformer2DModel(2, 32, in_channels=64, cross_attention_dim=64).eval()
    add_multiview_attention(model, "transformer")
    model.load_state_dict(split_widened(own))
    return model


@torch.no_grad()
def attention_rows(golden: Golden) -> Iterator[Row]:
    recorded, (masks, plucker) = golden.arrays("attention"), two_objects(golden)
    text = recorded["ctx"].flatten(0, 1)
    block, whole = transformer_block(golden), transformer(golden)
    for size in (8, 16):
        hidden = recorded[f"block_x_{size}"].flatten(0, 1)
        for kind, chosen in (("mask", masks), ("nomask", {})):
            given = {"views": ViewConditioning(2, masks=chosen)}
            ours = block(hidden, encoder_hidden_states=text, cross_attention_kwargs=given)
            ours = ours.unflatten(0, (2, 2))
            error = relative_error(ours, recorded[f"block_y_{size}_{kind}"])
            yield Row("attention block", f"{size}x{size}, {kind}", error, NETWORK)
    hidden = recorded["block_x_8"].flatten(0, 1)
    ours = block.attn1(hidden, views=ViewConditioning(2, masks=masks)).view(2, 128, 64)
    error = relative_error(ours, recorded["attn1_y_8_mask"])
    yield Row("attention", "self-attention over views, 8x8", error, NETWORK)
    ours = block.attn2(hidden, encoder_hidden_states=text)
    yield Row("attention", "to text, 8x8", relative_error(ours, recorded["attn2_y_8"]), NETWORK)
    for size in (8, 16, 32):
        hidden = recorded[f"tr_x_{size}"].flatten(0, 1)
        features = {"transformer": whole.plucker.features(plucker, size, size)}
        for kind, chosen in (("mask", masks), ("nomask", {})):
            if f"tr_y_{size}_{kind}" not in recorded:
                continue
            given = {"views": ViewConditioning(2, masks=chosen, plucker_features=features)}
            ours = whole(hidden, encoder_hidden_states=text, cross_attention_kwargs=given).sample
            recorded_y = recorded[f"tr_y_{size}_{kind}"]
            error = relative_error(ours.unflatten(0, (2, 2)), recorded_y)
            yield Row("transformer", f"{size}x{size}, {kind}", error, NETWORK)


def small_unet(golden: Golden) -> MultiViewUNet:
    """The recordings' small UNet; its camera embedding takes what was recorded after one."""
    weights = load_file(golden.folder / "unet_small_weights.safetensors")
    params = {
        "unet_config": {"params": golden.facts("unet_small")["config"]},
        "first_stage_config": {"params": {"ddconfig": {"ch_mult": [1, 2, 4, 4]}}},
    }
    state = {f"model.diffusion_model.{name}": value for name, value in weights.items()}
    config, weights = original_unet(state, params)
    unet = MultiViewUNet(**config).eval()
    report = unet.load_state_dict(weights, strict=False)
    assert not report.unexpected_keys
    assert all(name.startswith("camera_embedding.") for name in report.missing_keys)
    unet.camera_embedding = torch.nn.Identity()
    return unet


@torch.no_grad()
def unet_rows(golden: Golden) -> Iterator[Row]:
    unet, recorded = small_unet(golden), golden.arrays("unet_small")
    for width in (32, 320):
        name = f"timestep_embedding_{width}"
        steps = recorded["t"].flatten() if width == 32 else torch.arange(0, 1000, 37)
        ours = get_timestep_embedding(steps, width, flip_sin_to_cos=True, downscale_freq_shift=0)
        yield Row("UNet", name, relative_error(ours, recorded[name]), GEOMETRY)
    mask = unpacked(recorded["mask_packed"])
    masks = {n: DenseMask(flat_resize(mask, 3, n), 3) for n in (1024, 256, 64)}
    inner: dict[str, Tensor] = {}

    def keep(name: str) -> Callable:
        def hook(_module, _inputs, output):
            inner[name] = output[0] if isinstance(output, tuple) else output

        return hook

    unet.down_blocks[0].attentions[0].register_forward_hook(keep("h_in_1"))
    unet.down_blocks[1].downsamplers[0].register_forward_hook(keep("h_in_4"))
    unet.mid_block.register_forward_hook(keep("h_mid"))
    views = unet.prepare_views(3, recorded["cam"], recorded["plucker"], masks)
    ours = unet(recorded["x"], recorded["t"], recorded["ctx"], views).sample
    yield Row("UNet", "2 objects, 3 views, masked", relative_error(ours, recorded["y"]), NETWORK)
    for name, value in inner.items():
        error = relative_error(value.unflatten(0, (2, 3)), recorded[name])
        yield Row("UNet", f"inside: {name}", error, NETWORK)
    views = unet.prepare_views(3, recorded["cam"], recorded["plucker"])
    ours = unet(recorded["x"], recorded["t"], recorded["ctx"], views).sample
    error = relative_error(ours, recorded["y_nomask"])
    yield Row("UNet", "2 objects, 3 views, no masks", error, NETWORK)


def sampling_rows(golden: Golden) -> Iterator[Row]:
    recorded = golden.arrays("gaussian_blob")
    for sigma, name in ((0.5, "s5"), (0.2, "s2"), (0.7, "s7")):
        ours = gaussian_blob(256, 256, sigma)[0]
        error = relative_error(ours[::4, ::4], recorded[f"{name}_256_sub4"])
        yield Row("Gaussian blob", f"sigma {sigma}, 256x256", error, GEOMETRY)
    error = relative_error(gaussian_blob(64, 64, 0.5)[0], recorded["s5_64"])
    yield Row("Gaussian blob", "sigma 0.5, 64x64", error, GEOMETRY)

    recorded, scheduler = golden.arrays("schedules"), release_scheduler({})
    for name in ("betas", "alphas_cumprod"):
        error = relative_error(getattr(scheduler, name), recorded[name])
        yield Row("schedule", name, error, GEOMETRY)
    for steps in (10, 30, 50, 100, 300, 1000):
        scheduler.set_timesteps(steps)
        ours, expected = scheduler.timesteps.flip(0), recorded[f"ddim_timesteps_{steps}"]
        is_same = ours.tolist() == expected.tolist()
        yield Row("schedule", f"timesteps of {steps}", 1 - is_same, 0, "are others")
        alphas = scheduler.alphas_cumprod
        error = relative_error(alphas[ours], recorded[f"ddim_alphas_{steps}"])
        yield Row("schedule", f"noise levels of {steps}", error, GEOMETRY)
        before = (ours - 1000 // steps).clamp(min=0)
        error = relative_error(alphas[before], recorded[f"ddim_alphas_prev_{steps}"])
        yield Row("schedule", f"noise levels after each of {steps}", error, GEOMETRY)
    yield from trajectory_rows(golden)


@torch.no_grad()
def trajectory_rows(golden: Golden) -> Iterator[Row]:
    """The guided loop of `SPADPipeline`, on what the recordings have in place of text."""
    unet, recorded = small_unet(golden), golden.arrays("sampling_10")
    masks, plucker = two_objects(golden)
    views = unet.prepare_views(
        2,
        recorded["cam"].repeat(2, 1, 1),
        plucker.repeat(2, 1, 1, 1, 1),
        {n: DenseMask(m.dense().repeat(2, 1, 1), 2) for n, m in masks.items()},
    )
    text = torch.cat([recorded["uctx"].expand_as(recorded["ctx"]), recorded["ctx"]])
    scheduler = release_scheduler({})
    scheduler.set_timesteps(10)
    first = scheduler.timesteps[:1]
    latents = scheduler.add_noise(recorded["x0"], recorded["noise"], first)
    error = relative_error(latents, recorded["start"])
    yield Row("DDIM", "start, from the blob's place", error, GEOMETRY)
    for index, timestep in enumerate(scheduler.timesteps):
        predicted = unet(latents.repeat(2, 1, 1, 1, 1), timestep, text, views).sample
        predicted = SPADPipeline.guide(predicted, 7.5)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
        error = relative_error(latents, recorded["x_steps"][index])
        yield Row("DDIM", f"after step {index + 1} of 10", error, TRAJECTORY)
    yield Row("DDIM", "final latents", relative_error(latents, recorded["out"]), TRAJECTORY)


@torch.no_grad()
def checkpoint_rows(golden: Golden) -> Iterator[Row]:
    recorded, facts = golden.arrays("spad_tiny"), golden.facts("spad_tiny")
    with tempfile.TemporaryDirectory() as scratch:
        for weights in ("ema", "raw"):
            model = load_model(converted_tiny(golden, Path(scratch), weights), dtype=torch.float32)
            vae, unet, text_encoder = model.vae, model.unet, model.text_encoder
            if weights == "ema":
                ids = tokenize(model.tokenizer, facts["prompts"])
                differ = int((ids != recorded["tokens"]).sum())
                yield Row("tiny checkpoint", "tokens", differ, 0, "tokens that differ")
                ours = text_encoder(ids).last_hidden_state
                error = relative_error(ours, recorded["clip_last_hidden"])
                yield Row("tiny checkpoint", "text encoder", error, NETWORK)
                encoded = vae.encode(recorded["vae_img"]).latent_dist
                error = relative_error(encoded.mean, recorded["vae_mean"])
                yield Row("tiny checkpoint", "VAE, mean", error, NETWORK)
                error = relative_error(encoded.logvar, recorded["vae_logvar"])
                yield Row("tiny checkpoint", "VAE, log variance", error, NETWORK)
                decoded = vae.decode(recorded["dec_z"][0] / vae.config.scaling_factor).sample
                error = relative_error(decoded, recorded["dec_img"][0])
                yield Row("tiny checkpoint", "VAE, decoded", error, NETWORK)
                error = relative_error(unet.camera_embedding(recorded["cc_in"]), recorded["cc_out"])
                yield Row("tiny checkpoint", "camera embedding", error, NETWORK)
            mask = golden.mask("rand3")[None]
            masks = {n: DenseMask(flat_resize(mask, 3, n), 3) for n in (1024, 256)}
            unet.camera_embedding = torch.nn.Identity()
            plucker = golden.arrays("geom_rand3")["plucker"][None]
            views = unet.prepare_views(3, recorded["am_cam"], plucker, masks)
            ours = unet(recorded["am_x"], recorded["am_t"], recorded["am_ctx"], views).sample
            error = relative_error(ours, recorded[f"am_{weights}"])
            yield Row("tiny checkpoint", f"UNet, {weights} weights", error, NETWORK)


def converted_tiny(golden: Golden, scratch: Path, weights: str = "ema") -> Path:
    """The tiny checkpoint through `spad convert`."""
    config = scratch / "config.json"
    config.write_text(json.dumps(golden.facts("spad_tiny")["config"]), encoding="utf-8")
    return convert_checkpoint(
        ConvertConfig(
            checkpoint=golden.folder / "spad_tiny.ckpt",
            output=scratch / weights,
            clip=golden.folder / "tiny_clip",
            config=config,
            weights=weights,
        )
    )


ALL = (
    camera_rows,
    plucker_rows,
    mask_rows,
    attention_rows,
    unet_rows,
    sampling_rows,
    checkpoint_rows,
)


def table(golden: Golden) -> str:
    lines = ["| level | what | measured | at most | unit |", "|---|---|---|---|---|"]
    for rows in ALL:
        for row in rows(golden):
            assert row.error <= row.bound, row
            error, bound = (f"{x:.1e}" if x % 1 else f"{x:.0f}" for x in (row.error, row.bound))
            lines.append(f"| {row.level} | {row.tensor} | {error} | {bound} | {row.unit} |")
    return "\n".join(lines)


if __name__ == "__main__":
    golden = Golden(Path(sys.argv[1]))
    page = Path(__file__).with_name("parity_head.md").read_text(encoding="utf-8")
    page = page.replace("{table}", table(golden)).replace("{torch}", torch.__version__)
    sys.stdout.write(page)
