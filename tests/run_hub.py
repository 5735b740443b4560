"""Push a pipeline to a hub, and load it in every way: a folder, one for the hub, and its name."""

import os
import sys

import pytest
import torch
from diffusers import DiffusionPipeline

from hub_server import COMMIT
from spad import Cameras, SPADPipeline, load_model


def main(folder: str, folder_for_hub: str, repository: str) -> None:
    before = dict(os.environ)
    start = load_model(folder, "cpu", torch.float32)
    start.push_to_hub(repository)
    exact = {"dtype": torch.float32}
    pipelines = [
        start,
        DiffusionPipeline.from_pretrained(folder_for_hub, trust_remote_code=True, **exact),
        SPADPipeline.from_pretrained(folder_for_hub, **exact),
        DiffusionPipeline.from_pretrained(repository, trust_remote_code=True, **exact),
        SPADPipeline.from_pretrained(repository, revision=COMMIT, **exact),
        SPADPipeline.from_pretrained(repository, local_files_only=True, **exact),
    ]
    drawn = []
    for pipeline in pipelines:
        assert type(pipeline) is SPADPipeline
        assert (pipeline.defaults, pipeline.vocabulary) == (start.defaults, start.vocabulary)
        pipeline.set_progress_bar_config(disable=True)
        drawn.append(pipeline("a blue fish", Cameras.ring(2)).latents)
    assert all(torch.allclose(latents, drawn[0], atol=1e-4) for latents in drawn)
    for options, message in (
        ({"revision": "other"}, "Cannot load model us/tiny"),
        ({"trust_remote_code": False}, "trust_remote_code=True"),
    ):
        with pytest.raises((OSError, ValueError), match=message):
            DiffusionPipeline.from_pretrained(repository, **options)
    assert dict(os.environ) == before


if __name__ == "__main__":
    main(*sys.argv[1:])
