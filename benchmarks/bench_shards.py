"""Times `spad pack` in both image formats, and reading the shards in order and at random.

    python benchmarks/bench_shards.py RENDERS [OBJECTS]

RENDERS is a folder that `spad render` wrote; its first OBJECTS objects (64 if not told otherwise)
are packed with one thread and read with none. Rates are of processor time, of which one core has
one second a second: reading is from the memory of the system, not from a disk.
"""

import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from spad.data.config import PackConfig
from spad.data.dataset import ShardDataset
from spad.data.pack import pack
from spad.data.renders import read_renders
from spad.data.shards import read_shard_folder
from spad.data.workers import num_cores

VIEWS = 4


def processor_seconds(work: Callable[[], object]) -> float:
    """Taken by `work`."""
    started = time.process_time()
    work()
    return time.process_time() - started


def first_objects(renders: Path, count: int, folder: Path) -> Path:
    """A folder that lists a few of the renders."""
    rows = [json.loads(line) for line in (renders / "objects.jsonl").open(encoding="utf-8")][:count]
    for row in rows:
        row["folder"] = str(renders.resolve() / row.get("folder", row["uid"]))
    folder.mkdir()
    (folder / "objects.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def main() -> None:
    renders, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 64
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        some = first_objects(renders, count, folder / "renders")
        print(f"{platform.processor() or platform.machine()}, {num_cores()} cores, ", end="")
        print(f"Python {platform.python_version()}")
        objects = read_renders(some)
        count, views = len(objects), len(objects[0].cameras)
        print(f"{count} objects of {views} views of {objects[0].cameras.width} pixels")
        seconds = processor_seconds(lambda: [one.images() for one in objects])
        print(f"render folder, all views of an object: {count / seconds:,.1f} objects/s")
        for image_format in ("png", "webp"):
            config = PackConfig(
                some, folder / image_format, image_format, objects_per_shard=16, workers=1
            )
            seconds = processor_seconds(lambda config=config: pack(config))
            index = read_shard_folder(config.output)
            size = sum(shard.size for shard in index.shards)
            print(f"{image_format}: packed {count / seconds:,.1f} objects/s, ", end="")
            print(f"{size / count / views:,.0f} bytes a view")
            for shuffle in (False, True):
                stream = ShardDataset(config.output, VIEWS, shuffle=shuffle, window=1000)
                seconds = processor_seconds(lambda stream=stream: list(stream))
                order = "at random" if shuffle else "in order"
                print(f"{image_format}: {VIEWS} views {order}: {count / seconds:,.0f} samples/s")


if __name__ == "__main__":
    main()
