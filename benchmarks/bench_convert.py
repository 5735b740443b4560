"""Converts a full-size checkpoint of zeros, loads it, runs one step: time and peak memory.

    python benchmarks/bench_convert.py GOLDEN [--dtype float16]

GOLDEN is a folder with the key list of the released checkpoints and CLIP's tokenizer files. Needs
13 GB of disk in $TMPDIR. Every stage runs in a process of its own.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def write_checkpoint(golden: Path, path: Path) -> None:
    import torch

    facts = json.loads((golden / "state_dict_spad_four_views.json").read_text())
    dtypes = {"float32": torch.float32, "int32": torch.int32}
    state = {
        name: torch.zeros(entry["shape"], dtype=dtypes[entry["dtype"]])
        for name, entry in facts["keys"].items()
    }
    torch.save({"state_dict": state, "global_step": 0}, path)


def convert(golden: Path, path: Path, output: Path, dtype: str) -> None:
    from spad.hub.config import ConvertConfig
    from spad.hub.convert import convert_checkpoint
    from spad.hub.original_layout import TOKENIZER_FILES

    clip = output.with_name("clip")
    clip.mkdir()
    for name in TOKENIZER_FILES:
        shutil.copy(golden / "tiny_clip" / name, clip)
    convert_checkpoint(ConvertConfig(checkpoint=path, output=output, clip=clip, dtype=dtype))


def load_and_step(output: Path) -> None:
    from spad.cameras import Cameras
    from spad.hub.registry import load_model

    started = time.perf_counter()
    model = load_model(output, device="cpu")
    print(f"  of which loading         {time.perf_counter() - started:6.1f} s")
    model.use_scheduler("original")
    cameras = Cameras.ring(2, elevation_deg=45.0, height=256, width=256)
    model("a car", cameras, num_inference_steps=1)


def measured(title: str, *arguments: str) -> None:
    started = time.perf_counter()
    subprocess.run([sys.executable, __file__, *arguments], check=True)
    seconds = time.perf_counter() - started
    print(f"{title:26} {seconds:6.1f} s", flush=True)


def peak_memory() -> str:
    """Most memory this process held, the pages of mapped files included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return f"  peak {peak:.1f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("golden", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--stage", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage is not None:
        stage, path, output = options.stage[0], *map(Path, options.stage[1:])
        if stage == "write":
            write_checkpoint(options.golden, path)
        elif stage == "convert":
            convert(options.golden, path, output, options.dtype)
        else:
            load_and_step(output)
        print(peak_memory(), flush=True)
        return
    with tempfile.TemporaryDirectory() as scratch:
        path, output = f"{scratch}/full.ckpt", f"{scratch}/model"
        common = (str(options.golden), "--dtype", options.dtype, "--stage")
        measured("writing zeros", *common, "write", path, output)
        print(f"  {Path(path).stat().st_size / 1e9:.2f} GB")
        measured("spad convert", *common, "convert", path, output)
        size = sum(p.stat().st_size for p in Path(output).rglob("*") if p.is_file())
        print(f"  {size / 1e9:.2f} GB of {options.dtype}")
        measured("loading and one step", *common, "step", path, output)


if __name__ == "__main__":
    main()
