"""Runs `spad` with one more released model: run_download.py CONVERTER ARGUMENTS...

The model, `spad_tiny`, has its configuration in $TINY_CONFIG. CONVERTER is `real`; or `quick`,
which writes a folder of the right form in no time; or `refusing`, which finds fault with the file.
`full-disk` is `quick` on a machine with little space. Pauses between tries last a tenth.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from types import ModuleType

from spad.cli import main
from spad.hub.registry import save_model_manifest
from spad.model.released import RELEASED, ReleasedModel

RELEASED["spad_tiny"] = ReleasedModel(
    name="spad_tiny",
    file="data/checkpoints/spad_tiny.ckpt",
    views=4,
    description="nothing: it is untrained",
    size_bytes=18_540_107,
    tokenizer_files=(*ReleasedModel.tokenizer_files, "config.json"),
    config=Path(os.environ["TINY_CONFIG"]),
)
FILES = {
    "model_index.json": {
        "unet": ["spad", "MultiViewUNet"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    },
    "unet/config.json": {"sample_size": 32, "block_out_channels": [1, 2, 3, 4]},
    "vae/config.json": {"block_out_channels": [1, 2, 3, 4]},
    "text_encoder/config.json": {
        "vocab_size": 100,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    },
    "scheduler/scheduler_config.json": {},
}


def convert_quickly(settings) -> Path:
    folder = settings.output.with_name(f".{settings.name}.tmp")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    asked = {
        "sha256": hashlib.sha256(settings.checkpoint.read_bytes()).hexdigest(),
        "clip": sorted(path.name for path in settings.clip.iterdir()),
        "config": str(settings.config),
        "weights": settings.weights,
        "dtype": settings.dtype,
    }
    (folder / "asked.json").write_text(json.dumps(asked))
    save_model_manifest(folder, settings.name, RELEASED[settings.name].description, [])
    os.replace(folder, settings.output)
    return settings.output


def refuse(settings) -> Path:
    raise ValueError("expected another file")


time.sleep = lambda seconds, sleep=time.sleep: sleep(seconds / 10)
converter = sys.argv.pop(1)
if converter != "real":
    sys.modules["spad.hub.convert"] = ModuleType("spad.hub.convert")
    sys.modules["spad.hub.convert"].convert_checkpoint = (
        refuse if converter == "refusing" else convert_quickly
    )
if converter == "full-disk":
    shutil.disk_usage = lambda _folder: shutil._ntuple_diskusage(10**7, 0, 10**7)
sys.exit(main())
