"""Which files of the repository are pages and pictures of the documentation site."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

# Pages, what they show, and the files they link to.
PATTERNS = (
    "*.md",
    "CITATION.cff",
    "docs/**/*.md",
    "docs/*.ipynb",
    "docs/pictures/*",
    "docs/models/*",
    "benchmarks/mini-prompts.txt",
    "benchmarks/results/**/*.md",
    "src/spad/weights/*/README.md",
    "src/spad/weights/*/training/*/loss.svg",
)

# Shows a linked GLB file in the place of its image; its source is web/src/gallery.js.
VIEWER = "docs/models/gallery.js"
# It imports this, which the package has, from beside it.
THREE = "src/spad/app/static/three.js"
# What a browser fetches by itself from another server.
REQUEST = re.compile(r"""<(?!a\b)[^>]+\b(?:src|href|srcset)=["'](?:https?:)?//[^>]*>""")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's own files, and those of the repository under the paths they have there."""
    root = Path(config.config_file_path).parent
    pages = [file for file in files if file.src_dir != config.docs_dir]
    for pattern in PATTERNS:
        for path in sorted(root.glob(pattern)):
            name = path.relative_to(root).as_posix()
            pages.append(File.generated(config, name, abs_src_path=str(path)))
    beside = (Path(VIEWER).parent / "three.js").as_posix()
    pages.append(File.generated(config, beside, abs_src_path=str(root / THREE)))
    return Files(pages)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Add the viewer of 3D models to pages that link to some.

    Raises: PluginError: a reader's browser would ask another server for a part of the page.
    """
    if '.glb"' in output:
        viewer = get_relative_url(VIEWER, page.url)
        script = f'<script type="module" src="{viewer}"></script>'
        output = output.replace("</body>", f"{script}</body>")
    if request := REQUEST.search(output):
        raise PluginError(f"{page}: {request[0]}")
    return output
