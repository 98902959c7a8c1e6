"""Which rule of thumb loses least against the tuned plan: a depth and a strength that need no tuning.

    python benchmarks/rules_of_thumb.py results/tune-*/

Reads `tried.csv` and `tune.json` of some folders of `lm-eval-ext tune`. A rule is a depth (a tenth of the layers), a
strength (as a share of the residual stream's mean norm) and tokens; its loss in a folder is the value of the best plan minus
that of the plan next to the rule, both on the questions of the same rung.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

DEPTHS = (0.3, 0.4, 0.5, 0.6, 0.7)
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)


def first_rung(folder: Path) -> pd.DataFrame:
    """The plans of one localization vector on the questions of the first rung, where all of them were asked the same."""
    tried = pd.read_csv(folder / "tried.csv")
    kinds = json.loads((folder / "tune.json").read_text(encoding="utf-8"))["candidates"]
    singles = tried[
        (tried["stage"] == "one vector") & ~tried["kinds"].map(lambda name: kinds.get(name, {}).get("kind") == "en")
    ]
    rung: pd.DataFrame = singles[singles["questions"] == singles["questions"].min()]
    return rung


def losses(rung: pd.DataFrame) -> pd.DataFrame:
    """For each rule the loss against the best plan, in points; the average over the estimators."""
    rows = []
    for position, of_position in rung.groupby("position"):
        for depth in DEPTHS:
            for share in SHARES:
                values = []
                for _, of_kind in of_position.groupby("kinds"):
                    far = (of_kind["depth"] - depth).abs() / 0.1 + np.abs(np.log2(of_kind["share_of_norm"] / share))
                    values.append(of_kind["value"].loc[far.idxmin()])
                rows.append((position, depth, share, 100 * (rung["value"].max() - float(np.mean(values)))))
    return pd.DataFrame(rows, columns=["position", "depth", "share of norm", "loss"])


def main() -> None:
    """Print the rules that lose least, over all folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--top", type=int, default=8)
    arguments = parser.parse_args()
    frames = []
    for folder in arguments.folders:
        rung = first_rung(folder)
        frames.append(losses(rung).assign(folder=folder.name))
        best = rung.loc[rung["value"].idxmax()]
        print(f"{folder.name}: best of {len(rung)} plans {best['plan']}, {100 * best['value']:+.2f} points")
    rules = pd.concat(frames).pivot_table(index=["position", "depth", "share of norm"], columns="folder", values="loss")
    rules["average"] = rules.mean(axis=1)
    print(rules.sort_values("average").head(arguments.top).round(2).to_string())


if __name__ == "__main__":
    main()
