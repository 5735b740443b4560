"""Export a trained model: weights, manifest and model card in one folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from spad.files import whole_folder
from spad.hub.registry import (
    SHARD_SIZE,
    load_autoencoder,
    load_model,
    read_info,
    save_model_manifest,
)
from spad.model.finite import convert_weights
from spad.model.hub_files import write_hub_files
from spad.training.config import ExportConfig
from spad.training.model_card import (
    CARD,
    TRAINING,
    copy_record,
    data_section,
    head,
    run_section,
    runs_table,
)


def export_model(settings: ExportConfig) -> Path:
    """Write the pipeline in half precision, its manifest and its model card; return the folder.

    Raises: ValueError: a run lacks its model or its record, or the output folder exists.
    """
    model = settings.runs[-1] / "model"
    info = read_info(model)
    pipeline = load_model(model, dtype=torch.float32)
    runs = list(settings.runs)
    if settings.autoencoder is not None:
        autoencoder = settings.autoencoder / "vae"
        if not (autoencoder / "config.json").is_file():
            raise ValueError(f"expected an autoencoder in {autoencoder}, got no config.json")
        pipeline.register_modules(vae=load_autoencoder(autoencoder))
        runs.insert(0, settings.autoencoder)
    with whole_folder(settings.output) as folder:
        for part in (pipeline.unet, pipeline.vae):
            # Do not record the local path the model was loaded from.
            part.register_to_config(_name_or_path=settings.output.name)
        for name, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module):
                convert_weights(part, torch.float16, f"{name} of {model}")
        pipeline.save_pretrained(folder, max_shard_size=SHARD_SIZE)
        parts = [folder / TRAINING / f"{n}-{run.name}" for n, run in enumerate(runs)]
        for run, part in zip(runs, parts, strict=True):
            copy_record(run, part)
        (folder / CARD).write_text(model_card(settings, parts), encoding="utf-8")
        if settings.hub:
            name, description = settings.output.name, settings.description
            write_hub_files(folder, name, description, settings.license)
        save_model_manifest(
            folder,
            name=settings.output.name,
            description=settings.description,
            captions=info.captions(),
            defaults=replace(
                info.defaults,
                guidance_scale=settings.guidance_scale,
                guidance_scale_with_image=settings.guidance_scale_with_image,
                guidance_rescale=settings.guidance_rescale,
                scheduler=settings.scheduler or info.defaults.scheduler,
                num_inference_steps=settings.num_inference_steps
                or info.defaults.num_inference_steps,
            ),
            license=settings.license,
            author=settings.author,
        )
    return settings.output


def model_card(settings: ExportConfig, parts: Sequence[Path]) -> str:
    """Model card in Markdown, with settings, hardware, time and loss of every run."""
    lines = [
        *head(settings.output.name, settings.description, settings.license, settings.author),
        data_section(settings.data),
        "",
        *runs_table(parts),
    ]
    for part in parts:
        lines += run_section(part, f"{TRAINING}/{part.name}")
    return "\n".join(lines) + "\n"
