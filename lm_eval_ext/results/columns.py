"""A regular samples file as columns, parsed at once: what a full-size task on many models needs.

Regular is what the harness writes: every line has the same keys, the same metrics, numbers for scores. Anything else, and
any damage, is left to the reader in `samples`, which goes line by line and names the line that is wrong.

Many models answer the same documents. Of a task whose documents were just read in another run, in the same order, only the
ends of the lines are looked at (hashes and scores, which the harness writes last); they must agree in every other byte.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lm_eval_ext import json_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

_TEXTS = ("filter", "doc_hash")
_RESERVED = {*_TEXTS, "prompt_hash", "doc_id", "doc", "metrics"}

_HEAD = 20  # bytes: `{"doc_id": 14041, "d`

#: Tasks whose documents are remembered; 14,042 of them take 4 MB.
_MAX_KNOWN = 128


class _Known(NamedTuple):
    """The documents of a task: their lines' ends as read before, and all columns."""

    ends: _Ends
    frame: pd.DataFrame


class _Ends(NamedTuple):
    """What the ends of a file's lines say: constant text, the lines' first bytes (which hold the document's number), hashes
    of documents and prompts, scores by metric.
    """

    constant: bytes
    heads: NDArray[np.uint8]
    documents: NDArray[np.bytes_]
    prompts: NDArray[np.bytes_]
    scores: dict[str, NDArray[np.float64]]


_known: OrderedDict[str, _Known] = OrderedDict()


def read_columns(path: Path, task: str, question_ids: Sequence[str]) -> pd.DataFrame | None:
    """Columns doc_id, filter, doc_hash, prompt_hash, language and question (None where the documents do not say), and one
    of scores per metric; None where the file is not regular.

    Args:
        path: a `samples_*.jsonl` file.
        task: its task.
        question_ids: where a document may keep its question's id, the first that it has counts.
    """
    content = path.read_bytes()
    first = _first(content)
    if first is None:
        return None
    ends = _ends(content, first["metrics"])
    known = _known.get(task)
    if ends and known and _same_documents(ends, known.ends):
        again: pd.DataFrame = known.frame.assign(**ends.scores)
        return again
    frame = _parse(content, first, question_ids)
    if frame is not None and ends:
        _known[task] = _Known(ends, frame)
        _known.move_to_end(task)
        if len(_known) > _MAX_KNOWN:
            _known.popitem(last=False)
    return frame


def _first(content: bytes) -> dict[str, Any] | None:
    """The first sample, if it is one."""
    try:
        sample = json_text.parse(content[: content.find(b"\n") + 1 or None])
    except ValueError:
        return None
    if not isinstance(sample, dict) or not isinstance(sample.get("metrics"), list):
        return None
    metrics = sample["metrics"]
    named = all(isinstance(metric, str) for metric in metrics) and len(set(metrics)) == len(metrics)
    return sample if named and metrics and not _RESERVED & set(metrics) else None


def _same_documents(ends: _Ends, other: _Ends) -> bool:
    return (
        ends.constant == other.constant
        and np.array_equal(ends.heads, other.heads)
        and np.array_equal(ends.documents, other.documents)
        and np.array_equal(ends.prompts, other.prompts)
    )


def _ends(content: bytes, metrics: Sequence[str]) -> _Ends | None:
    """The ends of all lines, from `"filter":` on; None where they do not have one form and one width."""
    line = content[: content.find(b"\n") + 1]
    start = line.rfind(b'"filter": "')
    hashes = {
        name: re.search(rb'"%s": "([0-9a-f]{64})"' % name, line[start:]) for name in (b"doc_hash", b"prompt_hash")
    }
    numbers = {
        metric: re.search(rb"%s: (\d\.\d+)[,}]" % re.escape(json.dumps(metric).encode()), line[start:])
        for metric in metrics
    }
    varying = [*hashes.values(), *numbers.values()]
    other = re.search(rb'"target_hash": "([^"\\]*)"', line[start:])
    if start < 0 or not all(varying) or not content.endswith(b"\n"):
        return None
    width = len(line) - start
    bytes_ = np.frombuffer(content, np.uint8)
    breaks = np.flatnonzero(bytes_ == ord("\n"))
    if np.diff(breaks, prepend=-1).min() < width:
        return None
    rows = np.lib.stride_tricks.sliding_window_view(bytes_, width)[breaks - width + 1]
    constant = np.ones(width, dtype=bool)
    for match in (*varying, other):
        if match:
            constant[slice(*match.span(1))] = False
    if not (rows[:, constant] == rows[0, constant]).all():
        return None

    def texts(match: re.Match[bytes] | None) -> NDArray[np.bytes_]:
        assert match is not None
        return np.ascontiguousarray(rows[:, slice(*match.span(1))]).view(f"S{match.end(1) - match.start(1)}").ravel()

    try:
        scores = {metric: texts(match).astype(np.float64) for metric, match in numbers.items()}
    except ValueError:
        return None
    heads = np.lib.stride_tricks.sliding_window_view(bytes_, _HEAD)[np.append(0, breaks[:-1] + 1)]
    return _Ends(rows[0, constant].tobytes(), heads, texts(hashes[b"doc_hash"]), texts(hashes[b"prompt_hash"]), scores)


def _parse(content: bytes, first: dict[str, Any], question_ids: Sequence[str]) -> pd.DataFrame | None:
    """Every line; None where one has another form."""
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import json as arrow_json

    document = first["doc"] if isinstance(first.get("doc"), dict) else {}
    name = next((name for name in question_ids if document.get(name) is not None), None)
    metrics = first["metrics"]
    kinds = {str: pa.string(), int: pa.int64()}
    # What the first document lacks is asked for as well: it must be missing everywhere.
    earlier = question_ids if name is None else question_ids[: question_ids.index(name)]
    inside = {key: pa.string() for key in ("language", *earlier)}
    for key in ("language", name):
        if key and key in document:
            if type(document[key]) not in kinds:
                return None
            inside[key] = kinds[type(document[key])]
    schema = [
        ("doc_id", pa.int64()),
        *((text, pa.string()) for text in (*_TEXTS, "prompt_hash")),
        ("metrics", pa.list_(pa.string())),
        ("doc", pa.struct(list(inside.items()))),
        *((metric, pa.float64()) for metric in metrics),
    ]
    options = arrow_json.ParseOptions(explicit_schema=pa.schema(schema), unexpected_field_behavior="ignore")
    try:
        table = arrow_json.read_json(
            pa.BufferReader(content), arrow_json.ReadOptions(block_size=1 << 23), parse_options=options
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    listed = table["metrics"].combine_chunks()
    if len(listed.values) != len(metrics) * len(table) or listed.values.to_pylist() != metrics * len(table):
        return None
    if any(table[column].null_count for column in ("doc_id", *_TEXTS, *metrics)):
        return None
    if not all(np.isfinite(table[metric].to_numpy()).all() for metric in metrics):
        return None
    inner_columns = dict(zip(inside, table["doc"].combine_chunks().flatten(), strict=True))
    for key, values in inner_columns.items():
        if values.null_count != (0 if document.get(key) is not None else len(table)):
            return None
    frame: pd.DataFrame = table.select(["doc_id", *_TEXTS, "prompt_hash", *metrics]).to_pandas()
    has_language = inner_columns["language"].null_count == 0
    frame["language"] = inner_columns["language"].cast(pa.string()).to_pandas() if has_language else None
    frame["question"] = inner_columns[name].cast(pa.string()).to_pandas() if name else None
    frame["prompt_hash"] = frame["prompt_hash"].fillna("")
    return frame
