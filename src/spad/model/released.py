"""Models released by the authors of SPAD: where they are, their sizes and descriptions."""

from dataclasses import dataclass
from pathlib import Path

CLIP_REPOSITORY = "openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class ReleasedModel:
    """A checkpoint on the Hugging Face hub, in the layout of the original code.

    Attributes:
        file: path of the checkpoint in `repository`.
        views: number of views in training.
        size_bytes: approximate size of the checkpoint.
        image_size: side of the images in pixels.
        tokenizer_files: CLIP's tokenizer, in `tokenizer_repository`.
        tokenizer_size_bytes: approximate size of these files together.
        config: configuration in the original's layout. None: that of the released models.
    """

    name: str
    file: str
    views: int
    description: str
    size_bytes: int = 7_700_000_000
    repository: str = "yashkant/spad"
    license: str = "see huggingface.co/yashkant/spad"
    image_size: int = 256
    tokenizer_repository: str = CLIP_REPOSITORY
    tokenizer_files: tuple[str, ...] = (
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
    )
    tokenizer_size_bytes: int = 1_500_000
    config: Path | None = None


RELEASED = {
    model.name: model
    for model in (
        ReleasedModel(
            name="spad_two_views",
            file="data/checkpoints/spad_two_views.ckpt",
            views=2,
            description="any object, trained on pairs of views; cameras relative to the first",
        ),
        ReleasedModel(
            name="spad_four_views",
            file="data/checkpoints/spad_four_views.ckpt",
            views=4,
            description="any object, trained on four views; absolute cameras and intrinsics",
        ),
    )
}
