"""Every benchmark of this folder that has a target, and one table of what it found.

python benchmarks/run.py              # all
python benchmarks/run.py scoring      # some
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

from bench import Row, instruction_set

#: Modules with `rows()`, in the order of the table.
MODULES = ("scoring", "generation", "extraction", "sweep", "startup", "processes", "growth", "roofline", "on_vllm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(MODULES)} (default all)")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    if unknown := set(args.modules) - set(MODULES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}, valid: {', '.join(MODULES)}")
    rows = [row for name in args.modules or MODULES for row in run(name)]
    show(rows)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def run(name: str) -> list[Row]:
    """The rows of one benchmark; one that fails costs the others nothing."""
    print(f"{name} ...", file=sys.stderr)
    start, rows = time.perf_counter(), []
    try:
        for row in importlib.import_module(name).rows():
            print(f"  {row.what}: {row.measured} ({row.target}); {row.detail}", file=sys.stderr)
            rows.append(row)
    except Exception as error:  # the table is of what could be measured
        traceback.print_exc()
        rows.append(Row(name, "-", "failed", f"{type(error).__name__}: {error}"))
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return rows


def show(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"Benchmarks ({instruction_set()})")
    for column in ("what", "target", "measured", "met", "detail"):
        table.add_column(column, overflow="fold")
    for row in rows:
        met = {True: "yes", False: "NO", None: "-"}[row.met]
        table.add_row(*map(escape, (row.what, row.target, row.measured, met, row.detail)))
    Console().print(table)


if __name__ == "__main__":
    main()
