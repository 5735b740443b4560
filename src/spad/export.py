"""Ship a trained model: its weights in one folder, with a card of how they came about."""

import csv
import json
import shutil
from pathlib import Path

import torch

from spad.autoencoder import PatchAutoencoder
from spad.config import Export
from spad.data.views import count_objects, data_hash
from spad.models import (
    SHARD_SIZE,
    GenerationDefaults,
    load_model,
    read_info,
    save_model_manifest,
)
from spad.results import whole_folder
from spad.training_run import LOSSES, RECORD, SETTINGS


def export_model(settings: Export) -> Path:
    """Write `settings.output`: the pipeline in half precision, its manifest and its model card.

    Raises: ValueError: a run lacks its model or its record, or the output folder exists.
    """
    shipped = settings.runs[-1] / "model"
    captions = read_info(shipped).captions()
    pipeline = load_model(shipped)
    autoencoder = settings.autoencoder / "vae"
    if not (autoencoder / "config.json").is_file():
        raise ValueError(f"expected an autoencoder in {autoencoder}; train it first")
    pipeline.register_modules(vae=PatchAutoencoder.from_pretrained(autoencoder))
    runs = [settings.autoencoder, *settings.runs]
    with whole_folder(settings.output) as folder:
        for part in (pipeline.unet, pipeline.vae):
            # Where it was loaded from, on this machine, is nobody else's.
            part.register_to_config(_name_or_path=settings.output.name)
        pipeline.to(dtype=torch.float16)
        pipeline.save_pretrained(folder, max_shard_size=SHARD_SIZE)
        for number, run in enumerate(runs):
            target = folder / "training" / f"{number}-{run.name}"
            target.mkdir(parents=True)
            for name in (SETTINGS, RECORD, LOSSES):
                if not (run / name).is_file():
                    raise ValueError(f"expected {run / name}, which `spad train` writes")
                shutil.copy(run / name, target / name)
            (target / "loss.svg").write_text(loss_curve(target / LOSSES))
        (folder / "README.md").write_text(model_card(settings, folder))
        save_model_manifest(
            folder,
            name=settings.output.name,
            description=settings.description,
            captions=captions,
            defaults=GenerationDefaults(
                cfg_scale=settings.cfg_scale, guidance_rescale=settings.guidance_rescale
            ),
            licence=settings.licence,
            author=settings.author,
        )
    return settings.output


def model_card(settings: Export, folder: Path) -> str:
    """Markdown: what the model is, and every run's settings, hardware, time and loss."""
    lines = [
        f"# {settings.output.name}",
        "",
        settings.description,
        "",
        f"Licence: {settings.licence}. Author: {settings.author}.",
        "",
        f"Learned from {count_objects(settings.data)} rendered objects, less one in sixteen held "
        f"out by a hash of its id; sha256 of their index, which holds the hashes of all pictures: "
        f"`{data_hash(settings.data)}`.",
        "",
        "| run | steps | seconds | hardware | last loss |",
        "|---|---|---|---|---|",
    ]
    parts = sorted((folder / "training").iterdir())
    for part in parts:
        record = json.loads((part / RECORD).read_text())
        with (part / LOSSES).open() as file:
            last = list(csv.DictReader(file))[-1]
        loss = ", ".join(f"{k} {float(v):.4f}" for k, v in last.items() if k != "step")
        lines.append(
            f"| {part.name} | {record['steps']} | {record['seconds']:.0f} | "
            f"{record['hardware']}, torch {record['torch']} | {loss} |"
        )
    for part in parts:
        text = json.dumps(json.loads((part / SETTINGS).read_text()), indent=2)
        lines += ["", f"## {part.name}", "", f"![loss](training/{part.name}/loss.svg)"]
        lines += ["", "```json", text, "```"]
    return "\n".join(lines) + "\n"


def loss_curve(losses: Path, width: int = 640, height: int = 240) -> str:
    """The first column after `step` of a loss table, as an SVG with a logarithmic axis."""
    with losses.open() as file:
        rows = list(csv.reader(file))
    name = rows[0][1]
    steps, values = (torch.tensor([float(row[i]) for row in rows[1:]]) for i in (0, 1))
    x = 50 + (width - 70) * steps / steps.max()
    logs = values.clamp(min=1e-9).log()
    span = (logs.max() - logs.min()).clamp(min=1e-6)
    y = 20 + (height - 60) * (logs.max() - logs) / span
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))
    style = 'font-family="sans-serif" font-size="11"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
        '<rect width="100%" height="100%" fill="white"/>'
        f'<polyline points="{points}" fill="none" stroke="#2060c0" stroke-width="1.5"/>'
        f'<text x="5" y="24" {style}>{values.max():.3g}</text>'
        f'<text x="5" y="{height - 38}" {style}>{values.min():.3g}</text>'
        f'<text x="50" y="{height - 14}" {style}>{name}, steps 0 to {int(steps.max())}</text>'
        "</svg>\n"
    )
