"""Trained models side by side: measured on the same held-out items, with paired intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lm_eval_ext.console import Progress
from lm_eval_ext.data import instruct, sources
from lm_eval_ext.data.rows import ordered
from lm_eval_ext.errors import TrainingError
from lm_eval_ext.languages import AVERAGE, LANGUAGES
from lm_eval_ext.models import embedded
from lm_eval_ext.models.loading import load_config, load_model
from lm_eval_ext.spreadsheets import rows_to_csv
from lm_eval_ext.stats import cluster_bootstrap
from lm_eval_ext.steering.decoder import layer_count
from lm_eval_ext.steering.extraction import parse_layers
from lm_eval_ext.training import adapter, checkpoints, measures
from lm_eval_ext.training.rows import short_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: The name of the model before training.
BASE = "base"


class Difference(NamedTuple):
    """One line of the comparison: a run against its baseline, in one language or on average over them."""

    measure: str
    language: str
    run: str
    baseline: str
    n: int
    value: float
    before: float
    difference: float
    low: float
    high: float


def compare(
    runs: Sequence[Path],
    baselines: Sequence[str] = (BASE,),
    *,
    data: str = "mini",
    tuples: str = "mini",
    codes: Sequence[str] = tuple(LANGUAGES),
    pairs: str = "flores",
    max_pairs: int = 0,
    layer: str = "",
    batch_size: int = 16,
    dtype: str = "auto",
    device: str = "",
) -> tuple[list[Difference], dict[str, Any]]:
    """Measure trained runs, and the base they share, on the same items.

    Args:
        runs: folders of finished runs.
        baselines: `base`, or names of folders; every other model is held against each.
        data, tuples, codes, pairs, max_pairs: what to measure on (`measures.held_out`).
        layer: of the retrieval; that of a MIDALIGN run among the runs, else 50 %, where empty.
        batch_size, dtype, device: as for extraction.

    Returns:
        The differences, and a record of what was measured.

    Raises:
        TrainingError: a folder that holds no finished run; runs of different bases or prompts; an unknown baseline.
        DataError: nothing is left to measure on.
    """
    records = {folder.resolve().name: checkpoints.read(folder / checkpoints.FINISHED) for folder in runs}
    if len(records) < len(runs) or BASE in records:
        raise TrainingError(f"folders need names of their own, and none may be {BASE}: the name is what the table says")
    names = [BASE, *records]
    if unknown := [name for name in baselines if name not in names]:
        raise TrainingError(f"--baseline {unknown[0]!r} is unknown, valid: {', '.join(names)}")
    first = _alike(records)
    base = first["settings"]["model_name_or_path"] or str(embedded.path())
    chosen = _layer(layer, records, base)
    seen = frozenset(line for folder in runs for line in sources.read_text(folder / checkpoints.TRAINED_ON).split("\n"))
    rows = measures.held_out(data, tuples, pairs, codes, max_pairs, seen)
    values: dict[str, dict[tuple[str, str, str], float]] = {}
    with Progress(len(names) * measures.n_texts(rows), "Measuring", "text") as bar:
        for name, folder in zip(names, [None, *runs], strict=True):
            bar.note(name)
            model, tokenizer = _load(folder, records.get(name, first), base, dtype, device)
            items = measures.measure(
                model,
                tokenizer,
                rows,
                chosen,
                template=first["settings"]["template"],
                batch_size=batch_size,
                progress=bar.update,
            )
            values[name] = {(item.measure, item.language, item.id): item.value for item in items}
    record = {
        "base": first["base"],
        "layer": chosen,
        "pairs": {"source": short_name(pairs), "sentences": {code: len(side) for code, side in rows.sentences.items()}},
        "data": {
            "source": short_name(data),
            "rows": len(rows.instructions),
            "sha256": instruct.sha256(rows.instructions),
        },
        "tuples": {"source": short_name(tuples), "rows": len(rows.tuples), "sha256": instruct.sha256(rows.tuples)},
        "left_out_as_trained_on": dict(rows.left_out),
        "commands": {name: one["command"] for name, one in records.items()},
    }
    against = [(name, before) for before in baselines for name in names if name not in (before, BASE)]
    return [line for name, before in against for line in _differences(values, name, before)], record


def table(lines: Sequence[Difference]) -> str:
    """The differences as CSV."""
    return rows_to_csv([Difference._fields, *([*line[:5], *(f"{value:.5f}" for value in line[5:])] for line in lines)])


def _differences(values: dict[str, dict[tuple[str, str, str], float]], run: str, baseline: str) -> list[Difference]:
    lines = []
    for measure in measures.MEASURES:
        keys = [key for key in values[run] if key[0] == measure]
        after, before = (np.array([values[name][key] for key in keys]) for name in (run, baseline))
        languages = np.array([key[1] for key in keys])
        drawn = cluster_bootstrap(after - before, [key[2] for key in keys], languages)
        # English has no retrieval and no preference of its own, and its response loss is told apart.
        others = [code for code in drawn.strata if code != "en"]
        for name, strata in [*((code, [code]) for code in ordered(drawn.strata)), (AVERAGE, others)]:
            interval = drawn.interval(strata)
            value, then = (float(np.mean([side[languages == c].mean() for c in strata])) for side in (after, before))
            ends = (interval.value, interval.low, interval.high)
            lines.append(Difference(measure, name, run, baseline, drawn.n_documents(strata), value, then, *ends))
    return lines


def _alike(records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The first record, once it is sure that all runs start from one model and are asked in one way."""
    if not records:
        raise TrainingError("name the folder of at least one finished run")
    (name, first), *others = records.items()
    for other, record in others:
        for what, one, two in (
            ("base", first["base"], record["base"]),
            ("template", first["template"], record["template"]),
        ):
            if one != two:
                raise TrainingError(f"{name} and {other} cannot be compared: {what} {one!r} there, {two!r} here")
    return first


def _layer(asked: str, records: dict[str, dict[str, Any]], base: str) -> int:
    trained = next((str(record["layer"]) for record in records.values() if "layer" in record), "50%")
    layers = parse_layers(asked or trained, layer_count(load_config(base)))
    if len(layers) != 1:
        raise TrainingError(f"--layer {asked!r}: retrieval is measured at one layer, this names {len(layers)}")
    return layers[0]


def _load(folder: Path | None, record: dict[str, Any], base: str, dtype: str, device: str) -> tuple[Any, Any]:
    """A run's model, or the base where there is no folder."""
    if folder is not None and record["settings"]["full"]:
        return load_model(str(folder), dtype=dtype, device=device)
    model, tokenizer = load_model(base, dtype=dtype, device=device, **checkpoints.loading_options(record))
    adapter.check_base(model, record["base"], base)
    return (model if folder is None else adapter.put_on(model, folder)), tokenizer
