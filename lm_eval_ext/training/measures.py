"""What training changed, on held-out rows: retrieval of translations, response loss, preference for the prompt's language.

Every measure is one number per item (a sentence, an instruction, a tuple), so that two models are compared on the same
items, in pairs. Items that a run was trained on are left out of all of them, and counted.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lm_eval_ext.data import instruct
from lm_eval_ext.data.pairs import load_pairs
from lm_eval_ext.errors import DataError
from lm_eval_ext.scoring.requests import Request
from lm_eval_ext.scoring.scorer import Scorer
from lm_eval_ext.steering.decoder import layer_count, text_config
from lm_eval_ext.steering.extraction import pooled_states
from lm_eval_ext.steering.injection import Injector
from lm_eval_ext.steering.plan import DEFAULT_POSITION, Plan
from lm_eval_ext.steering.table import SteeringTable
from lm_eval_ext.training.encoding import Encoder
from lm_eval_ext.training.rows import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lm_eval_ext.training.encoding import Example

#: Measure: what it says, in what unit; and whether more of it is meant.
MEASURES = {
    "retrieval": "held-out retrieval, English to the language: share of sentences whose nearest is their translation",
    "response_loss": "held-out response loss, nats per token",
    "preference_xx": "log pi(y_xx|x_xx) - log pi(y_en|x_xx) of held-out tuples, nats; its change is z_xx / beta",
    "preference_en": "log pi(y_en|x_en) - log pi(y_xx|x_en) of held-out tuples, nats; its change is z_en / beta",
}


class Item(NamedTuple):
    """One number of a measure: of which language, and of which question or sentence (the same in all languages)."""

    measure: str
    language: str
    id: str
    value: float


class HeldOut(NamedTuple):
    """What models are measured on.

    Attributes:
        sentences: parallel sentences by language, as (id, English, other).
        instructions, tuples: rows of the held-out split.
        left_out: counts of what some run was trained on, by kind.
    """

    sentences: dict[str, list[tuple[str, str, str]]]
    instructions: list[instruct.Instruction]
    tuples: list[instruct.Tuple]
    left_out: Counter[str]


def held_out(
    data: str, tuples: str, source: str, codes: Sequence[str], max_pairs: int, seen: frozenset[str]
) -> HeldOut:
    """What is measured on: held-out rows, without any text that a run was trained on.

    Args:
        data: `mini` or a JSONL file of instructions.
        tuples: `mini` or a JSONL file of tuples.
        source: parallel sentences, as `data.pairs.load_pairs` takes them.
        codes: languages.
        max_pairs: the first so many sentences of each language; 0 for all.
        seen: digests of what the runs were trained on.

    Raises:
        DataError: nothing is left.
    """
    left_out: Counter[str] = Counter()
    sentences: dict[str, list[tuple[str, str, str]]] = {}
    for one in load_pairs("en", source, list(codes), max_pairs or None):
        rows = [(str(number), pair.positive, pair.negative) for number, pair in enumerate(one.pairs)]
        sentences[one.language] = [row for row in rows if not {digest(row[1]), digest(row[2])} & seen]
        left_out["sentences"] += len(rows) - len(sentences[one.language])
    instructions, _ = instruct.load(data, codes, "held_out")
    parallels, _ = instruct.load_tuples(tuples, [code for code in codes if code != "en"], "held_out")
    fresh = [row for row in instructions if digest(row.prompt) not in seen]
    fresh_tuples = [row for row in parallels if not {digest(row.x_en), digest(row.x_xx)} & seen]
    left_out["instructions"] += len(instructions) - len(fresh)
    left_out["tuples"] += len(parallels) - len(fresh_tuples)
    if not (all(sentences.values()) and fresh and fresh_tuples):
        raise DataError(
            f"nothing is left to measure on: {dict(left_out)} were trained on. Train on ntrex and evaluate on flores, say; "
            "give other held-out rows with --data"
        )
    return HeldOut(sentences, fresh, fresh_tuples, left_out)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: HeldOut,
    layer: int,
    *,
    template: str = "",
    batch_size: int = 16,
    progress: Callable[[int], object] = lambda done: None,
) -> list[Item]:
    """All measures of one model.

    Args:
        model, tokenizer: the model.
        rows: what to measure on.
        layer: 0-based decoder layer of the retrieval.
        template: of prompts, as in training.
        batch_size: texts per forward.
        progress: called with the number of texts just finished.
    """
    encoder = Encoder(tokenizer, template)
    return [
        *_retrieval(model, tokenizer, rows, layer, batch_size, progress),
        *_likelihoods(model, encoder, rows, batch_size, progress),
    ]


def n_texts(rows: HeldOut) -> int:
    """How many texts `measure` runs through the model."""
    english = {text for side in rows.sentences.values() for _, text, _ in side}
    return len(english) + sum(map(len, rows.sentences.values())) + len(rows.instructions) + 4 * len(rows.tuples)


def _retrieval(
    model: Any, tokenizer: Any, rows: HeldOut, layer: int, batch_size: int, progress: Callable[[int], object]
) -> list[Item]:
    """Accuracy at 1 from English to each language: cosine of mean-pooled hidden states, among the language's sentences."""
    texts = list(dict.fromkeys(text for side in rows.sentences.values() for row in side for text in row[1:]))
    states = torch.empty(0)
    for batch in pooled_states(
        model, tokenizer, texts, [layer], "mean", where="held-out sentences", batch_size=batch_size, progress=progress
    ):
        if not states.numel():
            states = torch.empty(len(texts), batch.states.shape[-1])
        states[batch.texts] = batch.states[0]
    unit = torch.nn.functional.normalize(states, dim=-1)
    place = {text: number for number, text in enumerate(texts)}
    items = []
    for language, side in rows.sentences.items():
        english, other = (unit[[place[row[column]] for row in side]] for column in (1, 2))
        nearest = (english @ other.T).argmax(1).tolist()
        items += [
            Item("retrieval", language, row[0], float(match == number or side[match][2] == row[2]))
            for number, (row, match) in enumerate(zip(side, nearest, strict=True))
        ]
    return items


def _likelihoods(
    model: Any, encoder: Encoder, rows: HeldOut, batch_size: int, progress: Callable[[int], object]
) -> list[Item]:
    config = text_config(model.config)
    table = SteeringTable.build(Plan.parse(None), None, layer_count(config), DEFAULT_POSITION)
    scorer = Scorer(model, Injector(model, table), max_length=config.max_position_embeddings)

    def score(examples: list[Example]) -> list[float]:
        requests = [Request(tuple(one.prompt), tuple(one.response), 0) for one in examples]
        return [one.log_likelihood for one in scorer.score(requests, batch_size, lambda done: progress(len(done)))]

    single = [encoder.instruction(row) for row in rows.instructions]
    items = [
        Item("response_loss", row.language, row.id, -log_likelihood / len(one.response))
        for row, one, log_likelihood in zip(rows.instructions, single, score(single), strict=True)
    ]
    fours = [encoder.parallel(row) for row in rows.tuples]
    log_likelihoods = iter(score([one for four in fours for one in four.all]))
    for row in rows.tuples:
        en_en, xx_en, xx_xx, en_xx = (next(log_likelihoods) for _ in range(4))
        items.append(Item("preference_xx", row.language, row.id, xx_xx - en_xx))
        items.append(Item("preference_en", row.language, row.id, en_en - xx_en))
    return items
