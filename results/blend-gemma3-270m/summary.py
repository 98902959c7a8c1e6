"""Scores of BLEnD with the country left out and named, under each scoring rule, with 95% intervals.

    lm_eval --model steered-hf --tasks blend_decon_cloze,blend_ctx_cloze --batch_size 32 \\
            --output_path RESULTS --log_samples
    python results/blend-gemma3-270m/summary.py RESULTS

Writes scores.csv and scores.md beside itself. Intervals: bootstrap over questions, 10,000 resamples; a difference is paired
by question. No upstream text is kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from lm_eval_ext.languages import LANGUAGES, NON_ENGLISH
from lm_eval_ext.results.samples import load
from lm_eval_ext.stats import cluster_bootstrap

RULES = {
    "acc": "sum",
    "acc_norm": "per character",
    "acc_bytes": "per byte",
    "acc_mutual_info": "mutual information",
    "acc_prior": "no question (control)",
    "english_bias": "US/UK share (sum)",
    "english_bias_norm": "US/UK share (per character)",
}
NAMED = "named - left out"
BEYOND_PRIOR = "left out - no question"


def main() -> None:
    """Read the results, write both tables."""
    frame = load(Path(sys.argv[1]), metrics=list(RULES))
    frame["wording"] = frame["task"].astype(str).str.extract(r"^(blend_decon|blend_ctx)_", expand=False)
    rows = []
    for metric in RULES:
        scores = frame[frame["metric"] == metric].pivot_table(
            index=["language", "question_id"], columns="wording", values="value", observed=True
        )
        if metric != "acc_prior":
            rows += measure("country left out", metric, scores["blend_decon"])
            rows += measure("country named", metric, scores["blend_ctx"])
            rows += measure(NAMED, metric, scores["blend_ctx"] - scores["blend_decon"])
        else:
            rows += measure("country left out", metric, scores["blend_decon"])
    by_rule = frame[frame["wording"] == "blend_decon"].pivot_table(
        index=["language", "question_id"], columns="metric", values="value", observed=True
    )
    rows += measure(BEYOND_PRIOR, "acc", by_rule["acc"] - by_rule["acc_prior"])
    table = pd.DataFrame(rows)
    here = Path(__file__).parent
    table.round(4).to_csv(here / "scores.csv", index=False)
    (here / "scores.md").write_text(markdown(table), encoding="utf-8")
    print(markdown(table))


def measure(wording: str, metric: str, values: pd.Series) -> list[dict[str, object]]:
    """The mean of a score or a paired difference per language and as the average of the six languages."""
    values = values.dropna()
    language, question = values.index.get_level_values(0), values.index.get_level_values(1)
    drawn = cluster_bootstrap(values.to_numpy(), question.to_numpy(), language.to_numpy())
    groups = {code: [code] for code in LANGUAGES} | {"average of six": list(NON_ENGLISH)}
    return [
        {"wording": wording, "rule": RULES[metric], "language": name, "n": drawn.n_documents(codes)}
        | dict(zip(("value", "low", "high"), drawn.interval(codes), strict=True))
        for name, codes in groups.items()
    ]


def markdown(table: pd.DataFrame) -> str:
    """A table per wording: a row per rule, a column per language."""
    parts = []
    for wording, part in table.groupby("wording", sort=False):
        cells = part.assign(
            cell=[
                f"{100 * v:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
                for v, low, high in part[["value", "low", "high"]].values
            ]
        ).pivot(index="rule", columns="language", values="cell")
        cells = cells.loc[list(dict.fromkeys(part["rule"])), list(dict.fromkeys(part["language"]))]
        counts = part.drop_duplicates("language").set_index("language")["n"]
        head = ["rule", *(f"{name} (n {counts[name]})" for name in cells.columns)]
        lines = [f"### {wording}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        lines += [
            "| " + " | ".join([rule, *row]) + " |" for rule, row in zip(cells.index, cells.to_numpy(), strict=True)
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
