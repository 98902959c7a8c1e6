"""The built data set as files, for use without the harness or without this package."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

from lm_eval_ext.data import blend, sources
from lm_eval_ext.data.prompts import PROMPTS
from lm_eval_ext.errors import DataError
from lm_eval_ext.io import write_file
from lm_eval_ext.languages import LANGUAGES
from lm_eval_ext.paths import tasks_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Rows = list[dict[str, Any]]

#: `hub` is parquet with the whole data card: a folder that can be uploaded as a data set.
FORMATS = ("parquet", "jsonl", "hub")
#: Configurations of a language (suffix of its code) and their splits: one item of each question for test and for choosing
#: layers, up to three of each question; the same with the country named.
CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "": {"test": {"split": "test"}, "dev2": {"split": "dev2"}, "repeats": {"split": "all", "repeats": 3}},
    "_ctx": {split: {"split": split, "wording": "ctx"} for split in ("test", "dev2")},
}
_EXTENSIONS = {"parquet": "parquet", "jsonl": "jsonl", "hub": "parquet"}


def export(form: str, folder: Path) -> list[Path]:
    """Write BLEnD without the country as `{language}/{split}.{parquet,jsonl}`, with the country as `{language}_ctx/...`.

    Columns as in `blend.documents`; a README says how to load them. The same items give the same JSON lines, byte for byte:
    those of the splits `repeats`, one language after the other, have the SHA-256 of the data card.

    Args:
        form: one of `FORMATS`.
        folder: new or empty; files of an earlier export are replaced.

    Returns:
        The files written.

    Raises:
        DataError: unknown format, a folder with other files in it, or BLEnD is missing, unreachable or changed.
    """
    if form not in FORMATS:
        raise DataError(f"unknown format {form!r}; valid: {', '.join(FORMATS)}")
    contents = {folder / name: content for name, content in _files(form)}
    present = {path for path in folder.rglob("*") if path.is_file()} if folder.exists() else set()
    if others := sorted(present - set(contents)):
        raise DataError(f"{folder} holds other files, such as {others[0].name}: name a new or empty folder")
    for path, content in contents.items():
        write_file(path, content)
    return list(contents)


def canonical(row: dict[str, Any]) -> str:
    """A row as the JSON line that is hashed: keys sorted, no white space, no ASCII escapes."""
    return json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n"


def _files(form: str) -> Iterator[tuple[str, bytes]]:
    extension = _EXTENSIONS[form]
    encode = _ENCODERS[extension]
    for code, suffix, split in _splits():
        rows = blend.documents(code, **CONFIGS[suffix][split])
        yield f"{code}{suffix}/{split}.{extension}", encode(rows)
    yield "README.md", _readme(form).encode("utf-8")


def _splits() -> Iterator[tuple[str, str, str]]:
    return ((code, suffix, split) for code in LANGUAGES for suffix, splits in CONFIGS.items() for split in splits)


def _jsonl(rows: Rows) -> bytes:
    return "".join(map(canonical, rows)).encode("utf-8")


def _parquet(rows: Rows) -> bytes:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


_ENCODERS: dict[str, Callable[[Rows], bytes]] = {"jsonl": _jsonl, "parquet": _parquet}


def _readme(form: str) -> str:
    configs: dict[str, list[str]] = {}
    for code, suffix, split in _splits():
        lines = configs.setdefault(code + suffix, [f"- config_name: {code}{suffix}", "  data_files:"])
        lines += [f"  - split: {split}", f"    path: {code}{suffix}/{split}.{_EXTENSIONS[form]}"]
    head = ["---", "license: cc-by-sa-4.0", "language:", *(f"- {code}" for code in LANGUAGES)]
    head += ["task_categories:", "- multiple-choice", "pretty_name: BLEnD without the country", "configs:"]
    head += [line for lines in configs.values() for line in lines] + ["---"]
    body = _README.format(
        fingerprint=blend.fingerprint(), files=" ".join(f"{code}/repeats.jsonl" for code in LANGUAGES)
    )
    yaml = _YAML.format(prompt=json.dumps(PROMPTS["el"].template, ensure_ascii=False))
    parts = ["\n".join(head), body + yaml]
    if form == "hub":
        parts.append(sources.read_text(tasks_dir() / "blend_decon" / "README.md"))
    return "\n".join(parts)


_README = """
# Decontextualised BLEnD

Everyday questions of BLEnD (Myung et al., 2024; https://github.com/nlee0212/BLEnD) with the country taken out, in seven
languages; the right option is the answer of the language's own country. Derived from BLEnD, hence CC-BY-SA-4.0: name both,
and share alike. Built by lm_eval_ext, whose `tasks/blend_decon/README.md` is the data card.

One configuration per language, with the splits `test`, `dev2` (for choosing layers) and `repeats` (both, with up to three
items of a question, bound by the column `cluster`); `el_ctx` and the like have the same options under questions that name
the country.

SHA-256 of all items: `{fingerprint}`. It is that of the JSON lines of the splits `repeats`:

    cat {files} | sha256sum

```python
datasets.load_dataset("FOLDER", "el", split="test")
```

A task for the harness without this package (Greek; FOLDER is this folder):

"""

_YAML = """```yaml
task: blend_el_cloze
dataset_path: FOLDER
dataset_name: el
test_split: test
output_type: multiple_choice
doc_to_text: {prompt}
doc_to_choice: options
doc_to_target: gold
metric_list:
  - metric: acc
  - metric: acc_norm
  - metric: acc_mutual_info
```
"""
