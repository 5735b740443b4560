"""The models the authors of SPAD released: facts for choosing and fetching one."""

from dataclasses import dataclass
from pathlib import Path

CLIP_REPOSITORY = "openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class ReleasedModel:
    """A checkpoint on the Hugging Face hub, in the layout of the original code.

    `size_bytes` is about that of the checkpoint `file` in `repository`, and `tokenizer_size_bytes`
    that of the `tokenizer_files` in `tokenizer_repository`. `views` are those it was trained to
    denoise together. `image_size` is in pixels. `config` is a file with the original's
    configuration, for a model that the converter does not know by its keys and shapes.
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
