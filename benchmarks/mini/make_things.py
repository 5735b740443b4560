"""Gathers the models that the embedded model learns from, and those it is tested with.

    python benchmarks/mini/make_things.py ASSETS FURNITURE OUTPUT
    spad render OUTPUT/models.jsonl --num-random 24 --num-orthogonal-sets 6 --output renders
    spad pack renders --output shards --recolor 5

ASSETS is a folder of CC0 models by Quaternius and Kay Lousberg (KayKit), laid out as
`things.jsonl` names them. FURNITURE is `BlendSwap-CC-0.sh3f` of Debian's package
sweethome3d-furniture 1.8, whose models are CC0 too; the package's other catalogs are not.

OUTPUT/models.jsonl lists one model of each kind to learn, with its captions, and
OUTPUT/held-out.jsonl kinds that are never learned; `spad render` takes either.
"""

import json
import re
import shutil
import sys
import zipfile
from pathlib import Path, PurePosixPath

THINGS = Path(__file__).with_name("things.jsonl")
LISTS = {"learned": "models.jsonl", "held-out": "held-out.jsonl"}
_IMAGE = re.compile(rb"(?im)^[ \t]*map_(?:kd|ke|d)[ \t]+(.+?)[ \t\r]*(?:\n|\Z)")
_COORDINATES = re.compile(r"^(vn?)\s+(\S+)\s+(\S+)\s+(\S+)", re.MULTILINE)


def turned(obj: str) -> str:
    """An OBJ file whose y axis is up, with z up, as `spad render` takes OBJ files."""

    def turn(match: re.Match) -> str:
        name, x, y, z = match.groups()
        return f"{name} {x} {z[1:] if z.startswith('-') else '-' + z} {y}"

    return _COORDINATES.sub(turn, obj)


def with_images(materials: bytes, images: set[str], file: str) -> bytes:
    """Materials of an OBJ file that name only images that there are; says which were left out."""

    def kept(match: re.Match) -> bytes:
        image = match[1].decode("latin-1")
        has_options = image.startswith("-")
        if image in images or (has_options and any(image.endswith(f" {n}") for n in images)):
            return match[0]
        print(f"{file}: the catalog has no {image}; its material keeps its color alone")
        return b""

    return _IMAGE.sub(kept, materials)


def unpack(furniture: zipfile.ZipFile, file: str, target: Path) -> None:
    """A model of the catalog with the materials and images beside it, z up."""
    folder = PurePosixPath(file).parent
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = [
        name
        for name in furniture.namelist()
        if PurePosixPath(name).parent == folder and not name.endswith((".obj", "/"))
    ]
    for name in beside:
        content = furniture.read(name)
        if name.endswith(".mtl"):
            content = with_images(content, {PurePosixPath(one).name for one in beside}, file)
        (target.parent / PurePosixPath(name).name).write_bytes(content)
    obj = furniture.read(file).decode("latin-1")
    target.write_bytes(turned(obj).encode("latin-1"))


def main(assets: str, furniture: str, output: str) -> None:
    output = Path(output)
    models = output / "models"
    models.mkdir(parents=True)
    lists = {name: [] for name in LISTS}
    with zipfile.ZipFile(furniture) as catalog:
        for line in THINGS.read_text(encoding="utf-8").splitlines():
            thing = json.loads(line)
            source = PurePosixPath(thing["file"])
            if thing["source"] == "furniture":
                target = models / thing["kind"] / source.name
                unpack(catalog, thing["file"], target)
            else:
                target = models / f"{thing['kind']}{source.suffix}"
                shutil.copyfile(Path(assets) / source, target)
            row = {"uid": thing["uid"], "file": target.relative_to(output).as_posix()}
            lists[thing["split"]].append(row | {"captions": thing["captions"]})
    for name, rows in lists.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (output / LISTS[name]).write_text(text, encoding="utf-8")
        print(f"{len(rows)} models: {output / LISTS[name]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
