"""Side effects, text by text: what a model or a plan does to texts and generations that it is not meant to change.

Every measure is one number per text for the baseline and one for the model that is measured, so that both are compared on
the same texts, in pairs.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch

from lm_eval_ext.errors import DataError, ModelError
from lm_eval_ext.side_effects import generations
from lm_eval_ext.steering.applied import AppliedSteering
from lm_eval_ext.steering.decoder import text_config
from lm_eval_ext.steering.table import SteeringTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COLUMNS = ("measure", "language", "id", "baseline", "value")

#: Most logits in float32 at a time: 64 MiB.
_LOGITS = 2**24


class _Text(NamedTuple):
    language: str
    id: str
    tokens: list[int]


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    table: SteeringTable | None,
    texts: Mapping[str, Mapping[str, str]],
    *,
    prompts: Mapping[str, Mapping[str, str]] | None = None,
    baseline: PreTrainedModel | None = None,
    new_tokens: int = 48,
    batch_size: int = 4,
    progress: Callable[[int], object] = lambda done: None,
) -> pd.DataFrame:
    """Measure a steered model against itself unsteered, or a model against its baseline.

    A text counts as a prompt, so that a plan steers it as it steers the prompts of tasks. Generations are greedy.

    Args:
        model: a decoder-only model of transformers.
        tokenizer: of both models.
        table: the plan, resolved; None or an empty one for a model that is not steered.
        texts: by language and id, the same texts in each language: what perplexity and the distributions of the next token
            are measured on.
        prompts: by language and id, what the models continue; none for no generations.
        baseline: the model to compare with; where left out, `model` without the plan.
        new_tokens: at most so many are generated; 0 for no generations.
        batch_size: texts per forward.
        progress: called with the number of texts just finished.

    Returns:
        one row per measure, language and text, with the columns `COLUMNS`: for the measures see `measures.MEASURES`.

    Raises:
        DataError: a text of fewer than two tokens, or longer than the model's context.
        LanguageError: a language that the plan has no vectors for, or that cannot be told.
        ModelError: the models have other vocabularies, or no finite logits.
    """
    steering = table if table is not None else SteeringTable()
    for language in {*texts, *(prompts or ())}:
        steering.row(language)
    rows = []
    for batch in _batches(_encoded(model, tokenizer, texts, 2), batch_size):
        rows += _next_tokens(model, baseline or model, steering, batch)
        progress(len(batch))
    if prompts and new_tokens:
        identify = generations.identifier(tuple(prompts))
        for batch in _batches(_encoded(model, tokenizer, prompts, 1, new_tokens), batch_size):
            rows += _generations(model, baseline or model, tokenizer, steering, batch, new_tokens, identify)
            progress(len(batch))
    frame: pd.DataFrame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame


def _encoded(
    model: Any, tokenizer: Any, texts: Mapping[str, Mapping[str, str]], fewest: int, more: int = 0
) -> list[_Text]:
    limit = getattr(text_config(model.config), "max_position_embeddings", None)
    encoded = [
        _Text(language, key, tokenizer(text)["input_ids"])
        for language, of_language in texts.items()
        for key, text in of_language.items()
    ]
    for language, key, tokens in encoded:
        if len(tokens) < fewest or (limit is not None and len(tokens) + more > limit):
            room = f"{len(tokens)} tokens and {more} new ones" if more else f"{len(tokens)} tokens"
            raise DataError(f"the text {key} in {language} has {room}; valid: {fewest} to {limit or 'any number'}")
    return encoded


def _batches(texts: Sequence[_Text], size: int) -> Iterator[list[_Text]]:
    """Texts of one language and of similar length."""
    for language in dict.fromkeys(text.language for text in texts):
        ordered = sorted((text for text in texts if text.language == language), key=lambda text: len(text.tokens))
        for start in range(0, len(ordered), size):
            yield ordered[start : start + size]


def _steered(model: Any, table: SteeringTable, language: str) -> AbstractContextManager[object]:
    return AppliedSteering(model, table, language) if table.steps else nullcontext()


def _inputs(model: Any, batch: Sequence[_Text], side: str) -> dict[str, Tensor]:
    """Token ids and attention mask, [texts, length]; padding is never read, so its id does not matter."""
    width = max(len(text.tokens) for text in batch)
    ids, mask = (torch.zeros(len(batch), width, dtype=torch.long) for _ in range(2))
    for row, text in enumerate(batch):
        place = slice(width - len(text.tokens), None) if side == "left" else slice(len(text.tokens))
        ids[row, place] = torch.tensor(text.tokens)
        mask[row, place] = 1
    device = model.get_input_embeddings().weight.device
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


# On texts --------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def _next_tokens(model: Any, baseline: Any, table: SteeringTable, batch: Sequence[_Text]) -> list[tuple[Any, ...]]:
    """Loss, divergence and agreement of the distributions of the next token; a mean over the places of each text."""
    inputs = _inputs(model, batch, "right")
    before = baseline(**inputs).logits
    with _steered(model, table, batch[0].language):
        after = model(**inputs).logits
    if before.shape[-1] != after.shape[-1]:
        raise ModelError(
            f"the models have vocabularies of {before.shape[-1]} and {after.shape[-1]} tokens: their distributions of the "
            "next token cannot be compared"
        )
    rows: list[tuple[Any, ...]] = []
    for row, (language, key, tokens) in enumerate(batch):
        target = torch.tensor(tokens[1:], device=after.device)
        sums = torch.zeros(4, dtype=torch.float64)
        step = max(1, _LOGITS // after.shape[-1])
        for start in range(0, len(target), step):
            place = slice(start, min(start + step, len(target)))
            log_p, log_q = (logits[row, place].float().log_softmax(-1) for logits in (before, after))
            of_target = target[place, None]
            divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
            agrees = log_p.argmax(-1) == log_q.argmax(-1)
            parts = (-log_p.gather(1, of_target), -log_q.gather(1, of_target), divergence, agrees)
            sums += torch.stack([part.double().sum().cpu() for part in parts])
        if not bool(sums.isfinite().all()):
            raise ModelError(
                f"the logits of the text {key} in {language} are not finite; use dtype bfloat16 or float32"
            )
        loss_before, loss, divergence_mean, agreement = (sums / len(target)).tolist()
        rows += [
            ("perplexity", language, key, loss_before, loss),
            ("kl", language, key, 0.0, divergence_mean),
            ("same_token", language, key, 1.0, agreement),
        ]
    return rows


# On generations --------------------------------------------------------------------------------------------------------


def _generations(
    model: Any,
    baseline: Any,
    tokenizer: Any,
    table: SteeringTable,
    batch: Sequence[_Text],
    new_tokens: int,
    identify: Callable[[str], str],
) -> list[tuple[Any, ...]]:
    """Language, length and repetition of what both models write."""
    language = batch[0].language
    before = _generate(baseline, tokenizer, batch, new_tokens)
    with _steered(model, table, language):
        after = _generate(model, tokenizer, batch, new_tokens)
    rows: list[tuple[Any, ...]] = []
    for text, *sides in zip(batch, before, after, strict=True):
        measured = [_of_generation(tokenizer, tokens, language, identify) for tokens in sides]
        rows += [
            (name, language, text.id, measured[0][name], measured[1][name])
            for name in measured[0]
            if name in measured[1]
        ]
    return rows


def _of_generation(
    tokenizer: Any, tokens: list[int], language: str, identify: Callable[[str], str]
) -> dict[str, float]:
    """The measures of one generation; without those of its language where no line has enough letters to tell."""
    measured = {"length": float(len(tokens)), "repetition": generations.repetition(tokens)}
    codes = generations.languages(tokenizer.decode(tokens, skip_special_tokens=True), identify)
    if codes:
        measured["language"] = float(all(code == language for code in codes))
        if language != "en":
            measured["english"] = float("en" in codes)
    return measured


@torch.inference_mode()
def _generate(model: Any, tokenizer: Any, batch: Sequence[_Text], new_tokens: int) -> list[list[int]]:
    """The new tokens of each text, without what ends it."""
    inputs = _inputs(model, batch, "left")
    ends = model.generation_config.eos_token_id
    stops = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops, default=0)
    written = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=new_tokens, pad_token_id=padding)
    rows = written[:, inputs["input_ids"].shape[1] :].tolist()
    return [row[: next((place for place, token in enumerate(row) if token in stops), len(row))] for row in rows]
