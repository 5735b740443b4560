"""Times `spad filter` on made-up annotations, and takes its peak memory.

    python benchmarks/bench_filter.py [ROWS]

A million rows if not told otherwise, made as they are written: files of 5,000 objects like
Objaverse's, each with the fields that the rules read and some thumbnails to skip over. The filter
runs in a process of its own, with every rule and a table of captions.
"""

import gzip
import hashlib
import json
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from spad.data.workers import num_cores

ROWS_PER_FILE = 5_000
WORDS = "chair car sword house tree robot lamp scan text scene mug dragon plane boat cat".split()
LICENSES = ("by",) * 18 + ("by-nc", "by-nc-sa", "by-sa", "cc0")
THUMBNAILS = {"images": [{"url": f"https://example.org/{i:0120d}", "width": i} for i in range(8)]}


def annotation(index: int, rng: random.Random) -> dict:
    return {
        "name": f"{rng.choice(WORDS)} {rng.randrange(50_000)}",
        "tags": [{"name": w, "slug": w, "uri": f"tags/{w}"} for w in rng.choices(WORDS, k=4)],
        "categories": [{"name": rng.choice(WORDS)}],
        "viewCount": int(rng.lognormvariate(4.5, 1.8)),
        "likeCount": int(rng.lognormvariate(0.7, 1.4)),
        "commentCount": int(rng.lognormvariate(-2, 1.5)),
        "faceCount": int(rng.lognormvariate(9, 2.2)),
        "vertexCount": int(rng.lognormvariate(8.5, 2.2)),
        "animationCount": int(rng.random() < 0.1),
        "license": rng.choice(LICENSES),
        "description": "d" * rng.randrange(400),
        "thumbnails": THUMBNAILS,
    }


def write(folder: Path, rows: int) -> int:
    """Write the annotations and captions; returns the annotations' size before compression."""
    rng = random.Random(0)
    size = 0
    (folder / "metadata").mkdir()
    with open(folder / "captions.csv", "w", encoding="utf-8") as captions:
        for first in range(0, rows, ROWS_PER_FILE):
            part = {}
            for index in range(first, min(first + ROWS_PER_FILE, rows)):
                uid = hashlib.md5(str(index).encode()).hexdigest()
                part[uid] = annotation(index, rng)
                if rng.random() < 0.8:
                    captions.write(f'{uid},"a {part[uid]["name"]}, seen from the front"\n')
            data = json.dumps(part).encode()
            size += len(data)
            path = folder / f"metadata/{first // ROWS_PER_FILE:06d}.json.gz"
            path.write_bytes(gzip.compress(data, 1))
    return size


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = write(folder, rows)
        command = [sys.executable, "-m", "spad", "filter", str(folder), "--preset", "clean"]
        command += ["--captions", str(folder / "captions.csv"), "--output", str(folder / "out")]
        started = time.perf_counter()
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        wall = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Linux counts in kilobytes, macOS in bytes.
    peak = used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {num_cores()} cores, Python {platform.python_version()}")
    print(f"{rows:,} objects, {size / 1e6:,.0f} MB of JSON: {wall:.1f} s, of them on the processor")
    print(f"{used.ru_utime + used.ru_stime:.1f} s; peak memory {peak:,.0f} MB")


if __name__ == "__main__":
    main()
