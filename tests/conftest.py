"""Parts that several test files share."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

# torch's compiler imports it, which fails once something else has imported Python's own distutils.
with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401

# Before torch starts: tests run beside each other and beside other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell ignores Ctrl-C for what it runs in the background, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Models that this user installed are no part of any test.
os.environ["SPAD_HOME"] = os.path.join(os.devnull, "spad")
# The same inputs on every machine, as long as they take, and nothing is kept of them.
hypothesis.settings.register_profile(
    "spad",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("spad")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first, so that no process is left with them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


CAPTIONS = (
    "a blue fish",
    "a green dragon",
    "a tall oak tree",
    "a grey rock",
    "a small red house with a door",
)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference material beside the repository; skips without it."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("SPAD_SHARED", default))
    if not folder.is_dir():
        pytest.skip(f"no reference material at {folder}; set SPAD_SHARED")
    return folder


@pytest.fixture(scope="session")
def browser():
    """A real Chromium without a window; skips where there is none."""
    executable = os.environ.get("SPAD_CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if executable is None:
        pytest.skip("no Chromium; install it with: make browser, or set SPAD_CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Without a graphics card WebGL is drawn by the CPU, if that is allowed.
        arguments = ["--no-sandbox", "--enable-unsafe-swiftshader"]
        running = driver.chromium.launch(executable_path=executable, args=arguments)
        yield running
        running.close()


@pytest.fixture
def shared_models(shared_dir, tmp_path) -> Callable[[int], list[Path]]:
    """The first few 3D models of the reference material, unpacked, under their own names."""

    def unpack(count: int) -> list[Path]:
        # Read as a stream: without unpacking the others.
        with tarfile.open(shared_dir / "assets/assets.tar.xz", "r|xz") as archive:
            models = (member for member in archive if member.name.endswith(".glb"))
            paths = []
            for model in itertools.islice(models, count):
                paths.append(tmp_path / Path(model.name).name)
                paths[-1].write_bytes(archive.extractfile(model).read())
        return paths

    return unpack


@pytest.fixture(scope="session")
def tiny_pipeline_folder(tmp_path_factory) -> Path:
    """A real, tiny, untrained model in half precision, with its manifest; not to be changed."""
    import torch
    from diffusers import DDIMScheduler

    from spad.hub.registry import save_model_manifest
    from spad.model import MultiViewUNet, PatchAutoencoder, SPADPipeline
    from spad.model.word_tokenizer import build_text_encoder, build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer(CAPTIONS)
    pipeline = SPADPipeline(
        vae=PatchAutoencoder(
            latent_channels=16, block_out_channels=(16, 16, 32), norm_num_groups=8
        ),
        text_encoder=build_text_encoder(tokenizer, width=64),
        tokenizer=tokenizer,
        unet=MultiViewUNet(
            sample_size=8,
            in_channels=16,
            out_channels=16,
            block_out_channels=(32, 64),
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=64,
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type="v_prediction",
        ),
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipeline.to(torch.float16).save_pretrained(folder)
    save_model_manifest(
        folder,
        name="tiny",
        description="nothing: it is untrained",
        captions=CAPTIONS,
        defaults={"num_inference_steps": 2},
        license="Apache-2.0",
        author="the tests",
    )
    return folder


@pytest.fixture(scope="session")
def renders(tmp_path_factory) -> Path:
    """Colored discs on nothing, six objects of four views, laid out as `spad render` does."""
    import torch
    from PIL import Image

    from spad.cameras import Cameras, save_transforms

    folder = tmp_path_factory.mktemp("renders")
    rows = []
    for index in range(6):
        views = folder / f"object{index}"
        (views / "images").mkdir(parents=True)
        cameras = Cameras.ring(4, height=64, width=64)
        names = [f"images/{view:03d}.png" for view in range(4)]
        for view, name in enumerate(names):
            y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
            disc = (x - 28 - 4 * view) ** 2 + (y - 32) ** 2 < (10 + 2 * index) ** 2
            rgba = torch.zeros(64, 64, 4, dtype=torch.uint8)
            rgba[disc] = torch.tensor([40 * index, 200 - 30 * index, 90, 255], dtype=torch.uint8)
            Image.fromarray(rgba.numpy()).save(views / name)
        save_transforms(views / "transforms.json", cameras, names)
        row = {"uid": f"object{index}", "captions": [f"disc {index}"], "folder": f"object{index}"}
        rows.append(json.dumps(row))
    (folder / "objects.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def disc_shards(renders, tmp_path_factory) -> Path:
    """The colored discs in two shards; not to be changed."""
    from spad.data.config import PackConfig
    from spad.data.pack import pack

    folder = tmp_path_factory.mktemp("discs") / "shards"
    pack(PackConfig(renders, folder, objects_per_shard=3))
    return folder


@pytest.fixture(scope="session")
def disc_vae(renders, tmp_path_factory) -> Path:
    """A tiny autoencoder whose linear parts fit the colored discs."""
    from spad.data.renders import load_all_images, read_renders
    from spad.images.pixels import image_tensor
    from spad.model import PatchAutoencoder

    vae = PatchAutoencoder(latent_channels=8, block_out_channels=(16, 16, 16), sample_size=64)
    images = image_tensor(load_all_images(read_renders(renders)))
    vae.fit_components(images.flatten(0, 1))
    folder = tmp_path_factory.mktemp("autoencoder") / "vae"
    vae.save_pretrained(folder)
    return folder


@pytest.fixture
def training(disc_shards, disc_vae, tmp_path):
    """Settings of a tiny run on the colored discs; accelerate forgets the run before."""
    from accelerate.state import AcceleratorState

    from spad.training.config import TrainConfig
    from train_settings import changed

    AcceleratorState._reset_state(reset_partial_state=True)
    yield changed(
        TrainConfig(),
        data=disc_shards,
        output=tmp_path / "run",
        vae=str(disc_vae),
        steps=4,
        views=(1, 2, 4),
        batch_size=8,
        warmup_steps=1,
        block_out_channels=(32, 32),
        text_width=64,
        device="cpu",
        save_every_s=0.0,
        log_every=1,
        sample_every=0,
        num_inference_steps=1,
        trackers=(),
        save_dtype="float32",
    )
    AcceleratorState._reset_state(reset_partial_state=True)
