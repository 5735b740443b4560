"""Laws of the prose: links, files, names and commands are right, and the site shows every page."""

import itertools
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tyro
import yaml

from spad.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "src/spad/weights/*/README.md")
    for path in ROOT.glob(pattern)
)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAD = re.compile(r"(?:^|/)spad$")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
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
    """The names that a repository's host and the site give to a page's headings.

    The two agree in ASCII alone: one keeps other letters, the other does not.
    """
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading, flags=re.ASCII).strip().lower().replace(" ", "-")
        for heading in headings
    }


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every `spad` command that a page shows, without placeholders of many."""
    for block in SHELL.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|", line):
                words = shlex.split(part.replace("\\", "/"), comments=True)
                program = [number for number, word in enumerate(words) if SPAD.search(word)]
                if program and "…" not in part:
                    yield words[program[0] + 1 :]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_are_understood(page, monkeypatch):
    class Understood(Exception):
        pass

    read = tyro.cli

    def read_only(*arguments, **options):
        read(*arguments, **options)
        raise Understood

    monkeypatch.setattr(tyro, "cli", read_only)
    for arguments in commands(page):
        with pytest.raises(Understood):
            main(arguments)


def test_what_the_readme_writes_is_ignored_by_git():
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text("utf-8").splitlines()}
    writes = {"--output", "--pack", "--html", "--save-capture", "--turntable"}
    for arguments in commands(ROOT / "README.md"):
        for flag, value in itertools.pairwise(arguments):
            assert flag not in writes or Path(value).parts[0] in ignored, arguments


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if PYTHON.search(page.read_text(encoding="utf-8"))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_python_examples_run(page, renders, disc_shards, tmp_path, monkeypatch):
    shutil.copytree(disc_shards, tmp_path / "shards")
    shutil.copytree(renders / "object0", tmp_path / "capture")
    monkeypatch.chdir(tmp_path)
    names = {}
    # As a reader goes through the page.
    for example in PYTHON.findall(page.read_text(encoding="utf-8")):
        exec(compile(example, page.name, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_and_names_of_the_project_exist(page):
    text = page.read_text(encoding="utf-8")
    files = set(re.findall(r"\b(?:src|tests|benchmarks)/[\w./-]*\w", text))
    assert not [name for name in files if not (ROOT / name).exists()]
    for name in set(re.findall(r"(?<![\w/.-])spad(?:\.\w+)+", text)):
        place = ROOT / "src"
        for part in name.split("."):
            if place.is_dir() and (place / part).is_dir():
                place = place / part
            elif place.is_dir() and place.joinpath(f"{part}.py").is_file():
                place = place / f"{part}.py"
            else:
                module = place / "__init__.py" if place.is_dir() else place
                assert re.search(rf"\b{part}\b", module.read_text(encoding="utf-8")), name


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
    assert sorted(nav) == sorted(path.relative_to(ROOT).as_posix() for path in PAGES)


def test_every_package_has_its_reference():
    packages = {path.parent.name for path in ROOT.glob("src/spad/*/__init__.py")}
    packages |= {path.stem for path in ROOT.glob("src/spad/[a-z]*.py")} - {
        "cli",
        "cluster",
        "command_line",
        "commands",
        "installation",
        "threads",
    }
    pages = {path.stem for path in ROOT.glob("docs/reference/*.md")} - {"index"}
    assert pages == packages
    for name in pages:
        assert f"::: spad.{name}\n" in (ROOT / f"docs/reference/{name}.md").read_text("utf-8")


def test_the_gallery_shows_every_picture():
    gallery = (ROOT / "docs/gallery.md").read_text(encoding="utf-8")
    pictures = {path.name for path in (ROOT / "docs/pictures").iterdir()}
    assert pictures == set(re.findall(r"\]\(pictures/([^)]+)\)", gallery))
