"""Laws of the prose: links lead somewhere, and the site shows every page and every package."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "src/spad/weights/*/README.md")
    for path in ROOT.glob(pattern)
)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tags mean something to mkdocs alone."""


Loader.add_multi_constructor("", lambda loader, suffix, node: None)


def nav_pages(entries: list) -> list[str]:
    pages = []
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        pages += nav_pages(value) if isinstance(value, list) else [value]
    return pages


@pytest.fixture(scope="module")
def nav() -> list[str]:
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    return nav_pages(site["nav"])


def anchors(page: Path) -> set[str]:
    """The names that a repository's host and the site give to a page's headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_pictures_resolve(page):
    broken = []
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        name, _, anchor = link.partition("#")
        if name.startswith(("https:", "http:", "mailto:")):
            continue
        target = page.parent / name if name else page
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_the_site_shows_every_page_once(nav):
    assert sorted(nav) == [path.relative_to(ROOT).as_posix() for path in PAGES]


def test_reference_pages_are_of_packages_that_exist():
    packages = {path.parent.name for path in ROOT.glob("src/spad/*/__init__.py")}
    pages = {path.stem for path in ROOT.glob("docs/reference/*.md")} - {"index"}
    assert pages <= packages
    for name in pages:
        assert f"::: spad.{name}\n" in (ROOT / f"docs/reference/{name}.md").read_text("utf-8")


def test_the_gallery_shows_every_picture():
    gallery = (ROOT / "docs/gallery.md").read_text(encoding="utf-8")
    pictures = {path.name for path in (ROOT / "docs/pictures").iterdir()}
    assert pictures == set(re.findall(r"\]\(pictures/([^)]+)\)", gallery))
