"""Machine translation of instructions from English, with any sequence-to-sequence model of transformers.

The tokens of the tokenizer show how a model expects the target language: as NLLB (`kor_Hang` first in the output), M2M100
(`__ko__` first in the output) or MADLAD (`<2ko>` before the input). The name of a model for one language pair may be a
pattern, such as `Helsinki-NLP/opus-mt-en-{language}`.

Texts are translated line by line. Translations are stored in a database as they are made, by model, language and line, so
that an interrupted run resumes.
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
        """The key of translations in the cache: everything that they depend on."""
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
        wanted: target languages.
        cache: database of translations; created if missing.
        settings: model and search.
        report: gets the counts.
        progress: called with the number of lines after each batch.

    Raises:
        DataError: there is no English row, the cache is damaged, or no tuple is left.
        ModelError: the model cannot be loaded, or does not support the language.
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
    translated = []
    for language in wanted:
        texts = lines(usable)
        translations = translate(texts, language, cache, settings, progress)
        for row in usable:
            x, y = (_joined(text, translations) for text in (row.prompt, row.response))
            if x is None or y is None:
                report.leave_out("too long to translate, or the translation is empty", language)
            elif x == row.prompt:
                report.leave_out("translation is the English text", language)
            else:
                source = f"{row.source}, translated by {settings.model}".removeprefix(", ")
                sides = row.prompt, row.response, x, y
                translated.append(Tuple(row.id, language, *sides, row.cultural, source, row.split))
    report.counted(translated)
    if not translated:
        raise DataError(f"no tuple is left:\n{report}")
    return translated


def translate(
    lines: Sequence[str],
    language: str,
    cache: Path,
    settings: Settings,
    progress: Callable[[int], object] = lambda n: None,
) -> dict[str, str]:
    """Translations of English lines; empty where a line is too long for the model or its translation is empty.

    Raises:
        DataError: the cache cannot be used.
        ModelError: the model cannot be loaded, or does not support the language.
    """
    cache.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(cache, timeout=60)) as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS lines (model TEXT, language TEXT, line TEXT, translation TEXT, "
                "PRIMARY KEY (model, language, line)) WITHOUT ROWID"
            )
            stored = "SELECT line, translation FROM lines WHERE model = ? AND language = ?"
            translations: dict[str, str] = dict(database.execute(stored, (settings.key, language)))
            # Lines of similar length together, for less padding.
            missing = sorted(set(lines) - translations.keys(), key=lambda line: (len(line), line))
            progress(len(lines) - len(missing))
            model = _Model(settings, language) if missing else None
            for start in range(0, len(missing), settings.batch_size):
                batch = missing[start : start + settings.batch_size]
                assert model is not None
                new = dict(zip(batch, model(batch), strict=True))
                with database:
                    database.executemany(
                        "INSERT OR REPLACE INTO lines VALUES (?, ?, ?, ?)",
                        [(settings.key, language, line, text) for line, text in new.items()],
                    )
                translations |= new
                progress(len(batch))
    except sqlite3.Error as error:
        raise DataError(f"the translation cache {cache} cannot be used ({error}): remove it, or name another") from None
    return {line: translations[line] for line in lines}


def lines(rows: Sequence[Instruction]) -> list[str]:
    """The distinct lines of instructions to translate: those with a letter or digit."""
    texts = (text for row in rows for text in (row.prompt, row.response))
    return list(dict.fromkeys(line.strip() for text in texts for line in text.split("\n") if _has_text(line)))


def _has_text(line: str) -> bool:
    return any(character.isalnum() for character in line)


def _joined(text: str, translations: dict[str, str]) -> str | None:
    """The translation of a text; None where a line has none."""
    lines = [translations[line.strip()] if _has_text(line) else line for line in text.split("\n")]
    complete = all(lines[i] for i, line in enumerate(text.split("\n")) if _has_text(line))
    return "\n".join(lines) if complete else None


class _Model:
    """A translation model with its target language."""

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
        self.prefix, self.first_token = self._target_tokens(name, language)
        self.max_length = min(
            self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", 512)
        )

    def __call__(self, lines: Sequence[str]) -> list[str]:
        import torch

        encoded = self.tokenizer([self.prefix + line for line in lines], return_tensors="pt", padding=True)
        length = encoded["attention_mask"].sum(1)
        fits = (length <= self.max_length).tolist()
        if not any(fits):
            return [""] * len(lines)
        inputs = {key: encoded[key][fits].to(self.settings.device) for key in ("input_ids", "attention_mask")}
        max_new_tokens = 2 * int(length[fits].max()) + 20
        forced: dict[str, Any] = {} if self.first_token is None else {"forced_bos_token_id": self.first_token}
        with torch.inference_mode():
            output = self.model.generate(
                **inputs, **forced, max_new_tokens=max_new_tokens, num_beams=self.settings.beams, do_sample=False
            )
        texts = iter(self.tokenizer.batch_decode(output, skip_special_tokens=True))
        return [next(texts).strip() if fit else "" for fit in fits]

    def _target_tokens(self, name: str, language: str) -> tuple[str, int | None]:
        """The prefix of a line, and the token that the translation must begin with."""
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
