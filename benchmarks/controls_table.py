"""Negative controls of `spad evaluate`: scores of renders and of corrupted renders, as a table.

spad render models --cameras orbit --views 12 --output renders
python benchmarks/controls_table.py renders --sets 12 --output controls.md

With --split, of the scores of --split-consistency, which take 15 seconds a set; with --middle, only
the middle one of the three severities of each control.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from spad.data.renders import list_sets
from spad.evaluation.controls import CORRUPTIONS, controls_table, score_controls
from spad.evaluation.metrics import METRICS
from spad.evaluation.split_consistency import SPLIT_METRICS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("renders", type=Path, help="folder of sets with one number of views")
    parser.add_argument("--sets", type=int, default=12, help="number of sets, the first ones")
    parser.add_argument("--output", type=Path, help="Markdown file; default: print it")
    parser.add_argument("--split", action="store_true", help="scores of two halves of the views")
    parser.add_argument("--middle", action="store_true", help="one severity of each control")
    chosen = parser.parse_args()
    metrics = SPLIT_METRICS if chosen.split else METRICS
    sets = [f.read() for f in list_sets(chosen.renders)[: chosen.sets]]
    controls = CORRUPTIONS
    if chosen.middle:
        controls = [replace(one, severities=one.severities[1:2]) for one in CORRUPTIONS]
    table = controls_table(score_controls(sets, metrics, controls), metrics)
    if chosen.output is None:
        print(table, end="")
    else:
        chosen.output.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
