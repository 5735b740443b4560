"""Which files of the repository are pages and pictures of the documentation site."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

# Pages, what they show, and the files they link to.
PATTERNS = (
    "*.md",
    "CITATION.cff",
    "docs/**/*.md",
    "docs/pictures/*",
    "benchmarks/mini-prompts.txt",
    "benchmarks/results/**/*.md",
    "src/spad/weights/*/README.md",
    "src/spad/weights/*/training/*/loss.svg",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's own files, and those of the repository under the paths they have there."""
    root = Path(config.config_file_path).parent
    pages = [file for file in files if file.src_dir != config.docs_dir]
    for pattern in PATTERNS:
        for path in sorted(root.glob(pattern)):
            name = path.relative_to(root).as_posix()
            pages.append(File.generated(config, name, abs_src_path=str(path)))
    return Files(pages)
