"""How long `spad --help` and `spad generate` take from a cold start, as a table.

Every run is a process of its own; no run is left out, so the first may read from a cold disk.
Run it with the Python that spad is installed in: python benchmarks/bench_start.py
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from spad.data.workers import num_cores

PROMPT = "a red car"


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    elapsed = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return elapsed


def help_loads_torch() -> bool:
    code = (
        "import sys; from spad.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(10 * ('torch' in sys.modules))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 10


def processor() -> str:
    if Path("/proc/cpuinfo").is_file():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def row(label: str, runs: list[float]) -> str:
    each = ", ".join(f"{run:.2f}" for run in runs)
    return f"| `{label}` | {statistics.median(runs):.2f} | {each} |"


def measure(options: argparse.Namespace) -> str:
    """The report, in Markdown."""
    spad = [sys.executable, "-m", "spad"]
    shown = ["generate", PROMPT, "--views", "4", "--model", options.model]
    if options.device:
        shown += ["--device", options.device]
    helps = [seconds([*spad, "--help"]) for _ in range(options.help_runs)]
    draws = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.runs):
            output = Path(folder, str(number))
            draws.append(seconds([*spad, *shown, "--output", str(output)]))
        record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    label = " ".join(["spad", *(f'"{x}"' if " " in x else x for x in shown)])
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join(
        [
            "| command | median, s | every run, s |",
            "|---|---|---|",
            row("spad --help", helps),
            row(label, draws),
            "",
            f"- `spad --help` loads torch: {'yes' if help_loads_torch() else 'no'}",
            f"- hardware: {processor()}, {num_cores()} cores, {platform.system()}; "
            f"drawn on {record['device']} with {record['threads']} threads",
            f"- versions: {versions}",
            f"- settings: {record['num_inference_steps']} steps of {record['scheduler']}, "
            f"{record['image_size']} pixels",
            f"- made by `python {' '.join(sys.argv)}` on {date.today()}",
        ]
    )


def publish(report: str, output: Path | None) -> None:
    """Print a report, and write it to `output`, whole or not at all."""
    print(report)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = output.with_name(f".{output.name}.{os.getpid()}")
        temporary.write_text(report + "\n", encoding="utf-8")
        os.replace(temporary, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini", help="an embedded model or a folder")
    parser.add_argument("--device", help="as in spad generate")
    parser.add_argument("--runs", type=int, default=3, help="of spad generate")
    parser.add_argument("--help-runs", type=int, default=5, help="of spad --help")
    parser.add_argument("--output", type=Path, help="Markdown file to write as well")
    options = parser.parse_args()
    if min(options.runs, options.help_runs) < 1:
        parser.error("expected at least one run of each command")
    report = measure(options)
    publish(report, options.output)


if __name__ == "__main__":
    main()
