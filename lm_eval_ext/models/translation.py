"""Machine translation of instructions out of English, with a transformers model of the user's choice.

A model says by the tokens of its tokenizer how it wants to be told the language: as NLLB (`kor_Hang` first in the output),
as M2M100 (`__ko__` first in the output) or as MADLAD (`<2ko>` before the input). A model of one language has it in its name,
which may be a pattern, such as `Helsinki-NLP/opus-mt-en-{language}`.

Texts are translated line by line. What is translated is kept in a database at once, by model, language and line: a run that
was stopped goes on where it was.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval_ext.data.instruct import Instruction, Report, Tuple
from lm_eval_ext.data.pairs import FLORES_CODES
from lm_eval_ext.errors import DataError, ModelError
from lm_eval_ext.models.loading import DTYPE_ARGUMENT, loading

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

#: Our default; the paper does not name its translation.
DEFAULT_MODEL = "facebook/nllb-200-distilled-600M"


@dataclass(frozen=True)
class Settings:
    """How to translate.

    Attributes:
        model: name on the hub or folder; `{language}` in it is replaced by the language's code.
        revision: of the model on the hub.
        device: where it runs.
        dtype: of its weights; float32 on a CPU.
        batch_size: lines per call.
        beams: width of the beam search (our default: 4).
    """

    model: str = DEFAULT_MODEL
    revision: str = "main"
    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int = 16
    beams: int = 4

    @property
    def key(self) -> str:
        """What a translation depends on, in the cache."""
        return f"{self.model}@{self.revision} beams={self.beams}"


def tuples(
    rows: Sequence[Instruction],
    wanted: Sequence[str],
    cache: Path,
    settings: Settings,
    report: Report,
    progress: Callable[[int], object] = lambda n: None,
) -> list[Tuple]:
    """Parallel tuples of English instructions.

    Args:
        rows: English instructions; later turns of a conversation are left out.
        wanted: the languages to translate into.
        cache: database of what is translated; made where there is none.
        settings: model and search.
        report: gets the counts.
        progress: called with the number of lines after each batch.

    Raises:
        DataError: there is no English row, the cache is damaged, or no tuple is left.
        ModelError: the model cannot be loaded, or not be told the language.
    """
    usable = []
    for row in rows:
        if row.language != "en":
            report.leave_out("not in English, so not translated", row.language)
        elif row.history:
            report.leave_out("later turn of a conversation", row.language)
        else:
            usable.append(row)
    if not usable:
        raise DataError(f"there is no English instruction to translate:\n{report}")
    made = []
    for language in wanted:
        texts = lines(usable)
        known = translate(texts, language, cache, settings, progress)
        for row in usable:
            x, y = (_joined(text, known) for text in (row.prompt, row.response))
            if x is None or y is None:
                report.leave_out("too long to translate, or translated to nothing", language)
            elif x == row.prompt:
                report.leave_out("translation is the English text", language)
            else:
                by = f"{row.source}, translated by {settings.model}".removeprefix(", ")
                made.append(Tuple(row.id, language, row.prompt, row.response, x, y, row.cultural, by, row.split))
    report.counted(made)
    if not made:
        raise DataError(f"no tuple is left:\n{report}")
    return made


def translate(
    lines: Sequence[str],
    language: str,
    cache: Path,
    settings: Settings,
    progress: Callable[[int], object] = lambda n: None,
) -> dict[str, str]:
    """Translations of English lines; an empty one where a line is too long for the model or nothing came out.

    Raises:
        DataError: the cache is not one.
        ModelError: the model cannot be loaded, or not be told the language.
    """
    cache.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(cache, timeout=60)) as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS lines (model TEXT, language TEXT, line TEXT, translation TEXT, "
                "PRIMARY KEY (model, language, line)) WITHOUT ROWID"
            )
            stored = "SELECT line, translation FROM lines WHERE model = ? AND language = ?"
            known: dict[str, str] = dict(database.execute(stored, (settings.key, language)))
            # Lines of like length together: less padding.
            missing = sorted(set(lines) - known.keys(), key=lambda line: (len(line), line))
            progress(len(lines) - len(missing))
            model = _Model(settings, language) if missing else None
            for start in range(0, len(missing), settings.batch_size):
                batch = missing[start : start + settings.batch_size]
                assert model is not None
                fresh = dict(zip(batch, model(batch), strict=True))
                with database:
                    database.executemany(
                        "INSERT OR REPLACE INTO lines VALUES (?, ?, ?, ?)",
                        [(settings.key, language, line, text) for line, text in fresh.items()],
                    )
                known |= fresh
                progress(len(batch))
    except sqlite3.Error as error:
        raise DataError(f"the translation cache {cache} cannot be used ({error}): remove it, or name another") from None
    return {line: known[line] for line in lines}


def lines(rows: Sequence[Instruction]) -> list[str]:
    """What is translated of instructions: all different lines that have a letter or digit in them."""
    texts = (text for row in rows for text in (row.prompt, row.response))
    return list(dict.fromkeys(line.strip() for text in texts for line in text.split("\n") if _says_something(line)))


def _says_something(line: str) -> bool:
    return any(character.isalnum() for character in line)


def _joined(text: str, known: dict[str, str]) -> str | None:
    """The translation of a text; None where a line of it has none."""
    lines = [known[line.strip()] if _says_something(line) else line for line in text.split("\n")]
    complete = all(lines[i] for i, line in enumerate(text.split("\n")) if _says_something(line))
    return "\n".join(lines) if complete else None


class _Model:
    """A translation model, told its language."""

    def __init__(self, settings: Settings, language: str) -> None:
        import transformers

        name = settings.model.replace("{language}", language)
        with loading(name, "Give a translation model with --translate: a name on the hub or a folder"):
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(name, revision=settings.revision)
            self.model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
                name, revision=settings.revision, **{DTYPE_ARGUMENT: settings.dtype}
            )
        self.model.to(settings.device).eval()
        self.settings = settings
        self.prefix, self.first = self._told(name, language)
        self.longest = min(self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", 512))

    def __call__(self, lines: Sequence[str]) -> list[str]:
        import torch

        encoded = self.tokenizer([self.prefix + line for line in lines], return_tensors="pt", padding=True)
        length = encoded["attention_mask"].sum(1)
        fits = (length <= self.longest).tolist()
        if not any(fits):
            return [""] * len(lines)
        inputs = {key: encoded[key][fits].to(self.settings.device) for key in ("input_ids", "attention_mask")}
        room = 2 * int(length[fits].max()) + 20
        forced: dict[str, Any] = {} if self.first is None else {"forced_bos_token_id": self.first}
        with torch.inference_mode():
            output = self.model.generate(
                **inputs, **forced, max_new_tokens=room, num_beams=self.settings.beams, do_sample=False
            )
        texts = iter(self.tokenizer.batch_decode(output, skip_special_tokens=True))
        return [next(texts).strip() if fit else "" for fit in fits]

    def _told(self, name: str, language: str) -> tuple[str, int | None]:
        """What stands before a line, and the token that the translation must begin with."""
        vocabulary: dict[str, int] = self.tokenizer.get_vocab()
        if (token := FLORES_CODES[language]) in vocabulary:
            self.tokenizer.src_lang = FLORES_CODES["en"]
            return "", vocabulary[token]
        if (token := f"__{language}__") in vocabulary:
            self.tokenizer.src_lang = "en"
            return "", vocabulary[token]
        if (token := f"<2{language}>") in vocabulary:
            return f"{token} ", None
        if "{language}" in self.settings.model:
            return "", None
        raise ModelError(
            f"the model {name!r} has no token for {language} ({FLORES_CODES[language]}, __{language}__ or <2{language}>): "
            "use a model such as NLLB, M2M100 or MADLAD, or one per language with {language} in its name"
        )
