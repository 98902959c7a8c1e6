"""A decoder built by hand, of which everything is known: what it knows, where, and along which directions.

A question is asked as `LANGUAGE QUESTION PLACE ?`, where the place names a country (`in-ko-0`: several names each) or none
(`here-0`). The answer is one of four tokens. The residual stream has a direction for each language, for each country, for "a
country is named", for each question and each answer; all are rotated at random, so that no coordinate means anything.
Layer 0 copies what the four tokens say to the last one; nothing else attends. Then

- layer `UNIVERSAL` answers universal questions: some in every language, the others in English only (elsewhere wrongly);
- layer `CULTURAL` answers cultural questions: with the answer of the named country; where none is named with that of the US,
  or, for some questions, of the language's own country; and with the latter where "a country is named" and none is known.

So a vector towards English helps universal questions up to the layer before `UNIVERSAL`, and hurts cultural ones; a vector
towards a country helps cultural questions up to the layer before `CULTURAL`. Beyond, no vector can: answers are dealt out to
questions at random.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lm_eval_ext.data.pairs import Pair, PairSet

LAYERS, UNIVERSAL, CULTURAL = 6, 2, 4
LANGUAGES = ("en", "ko", "el", "zh")
OTHERS = LANGUAGES[1:]

#: Questions of each subject: the first are for vectors, the others are asked.
DEV, ASKED = 24, 24
N_ANSWERS, N_NAMES, N_NOISE = 4, 6, 8

#: Names of the directions; `noise` is what names of places differ by.
FEATURES = (
    "constant",
    *(f"language {code}" for code in LANGUAGES),
    *(f"country {code}" for code in LANGUAGES),
    "named",
    *(f"question {subject}{n}" for subject in "uc" for n in range(DEV + ASKED)),
    *(f"answer {n}" for n in range(N_ANSWERS)),
    *(f"noise {n}" for n in range(N_NOISE)),
)
HIDDEN = 4 * -(-len(FEATURES) // 4)

#: What a unit of an MLP reads, its threshold, the feature that it writes, and how strongly.
Unit = tuple[dict[str, float], float, str, float]

#: Length of the constant direction, which keeps the norm of the stream steady; and how sharply units tell above from below.
_CONSTANT, _SHARPNESS = 30.0, 60.0


@dataclass(frozen=True)
class Planted:
    """A model of that kind.

    Attributes:
        everywhere: share of the universal questions that are answered in every language.
        local: share of the cultural questions that are answered for the language's own country without naming it.
        forgotten: share of the cultural questions whose answers outside of the US are lost.
        merged: share of the language's direction that is taken away once a question is answered: at layer `UNIVERSAL` of a
            universal one, at `CULTURAL` of a cultural one.
        seed: of the rotation, the answers and the noise.
    """

    everywhere: float = 0.5
    local: float = 0.5
    forgotten: float = 0.0
    merged: float = 0.0
    seed: int = 0
    answers: Tensor = field(init=False, repr=False, compare=False)
    basis: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Draw what is random: the same for the same seed, whatever the shares."""
        random = torch.Generator().manual_seed(self.seed)
        orders = [torch.randperm(N_ANSWERS, generator=random) for _ in range(2 * (DEV + ASKED))]
        object.__setattr__(self, "answers", torch.stack(orders).view(2, DEV + ASKED, N_ANSWERS))
        rotation = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=random)).Q
        object.__setattr__(self, "basis", rotation[: len(FEATURES)])

    def direction(self, *features: str, **weights: float) -> Tensor:
        """The sum [hidden] of the directions of features; a weighted one by `name=weight`, spaces as underscores."""
        named = dict.fromkeys(features, 1.0) | {k.replace("_", " "): w for k, w in weights.items()}
        return sum((w * self.basis[FEATURES.index(name)] for name, w in named.items()), torch.zeros(HIDDEN))

    # Questions ---------------------------------------------------------------------------------------------------------

    def right(self, subject: str, question: int, language: str = "en") -> int:
        """The right answer: of a cultural question the one of the language's own country."""
        of_question = self.answers["uc".index(subject), question]
        return int(of_question[LANGUAGES.index(language) if subject == "c" else 0])

    def pairs(self, kind: str) -> list[PairSet]:
        """Pairs of kind `en` (English against the language) or `loc` (country named against not), on questions of dev."""
        sets = []
        for code in OTHERS:
            pairs = []
            for n in range(DEV):
                here = f"here-{(n + 2) % N_NAMES}"
                if kind == "en":
                    texts, subject = (f"en u{n} here-{n % N_NAMES} ?", f"{code} u{n} {here} ?"), "u"
                else:
                    texts, subject = (f"{code} c{n} in-{code}-{n % N_NAMES} ?", f"{code} c{n} {here} ?"), "c"
                pairs.append(Pair(*texts, language=code, answer=f" A{self.right(subject, n, code)}"))
            sets.append(PairSet(kind, code, "planted", tuple(pairs)))
        return sets

    def chosen(self, subject: str, language: str, *, place: str = "", steering: Any = None) -> Tensor:
        """The answers [asked] to the questions that no vector was made of, under steering if any; see `logits`."""
        return self.logits(subject, language, place=place, steering=steering).argmax(1)

    def logits(self, subject: str, language: str, *, place: str = "", steering: Any = None) -> Tensor:
        """The logits [asked, answers] of the answers.

        Args:
            subject: `u` or `c`.
            language: of the questions.
            place: the country that is named, if any.
            steering: what `VectorSet.apply` takes: vectors, and a plan.
        """
        texts = [
            f"{language} {subject}{n} {f'in-{place}' if place else 'here'}-{n % N_NAMES} ?"
            for n in range(DEV, DEV + ASKED)
        ]
        ids = torch.tensor(tokenizer()(texts)["input_ids"])
        model = self.model
        with torch.inference_mode():
            if steering is None:
                logits = model(input_ids=ids).logits
            else:
                vectors, plan = steering
                with vectors.apply(model, plan, language=language):
                    logits = model(input_ids=ids).logits
        return logits[:, -1, [tokenizer().convert_tokens_to_ids(f"A{n}") for n in range(N_ANSWERS)]]

    def accuracy(self, subject: str, steering: Any = None, *, named: bool = False, languages: Any = OTHERS) -> float:
        """Share of right answers over the languages but English, under steering if any."""
        hits = [
            self.chosen(subject, code, place=code if named else "", steering=steering)
            == torch.tensor([self.right(subject, n, code) for n in range(DEV, DEV + ASKED)])
            for code in languages
        ]
        return float(torch.cat(hits).float().mean())

    def english_bias(self, steering: Any = None) -> float:
        """Share of answers to cultural questions that are those of the US."""
        us = torch.tensor([self.right("c", n, "en") for n in range(DEV, DEV + ASKED)])
        return float(torch.cat([self.chosen("c", code, steering=steering) == us for code in OTHERS]).float().mean())

    # The model ---------------------------------------------------------------------------------------------------------

    @cached_property
    def model(self) -> LlamaForCausalLM:
        """The decoder."""
        facts = {UNIVERSAL: self._universal(), CULTURAL: self._cultural()}
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer()),
                hidden_size=HIDDEN,
                intermediate_size=max(map(len, facts.values())),
                num_hidden_layers=LAYERS,
                num_attention_heads=4,
                head_dim=HIDDEN // 4,
                max_position_embeddings=64,
                rms_norm_eps=1e-6,
                tie_word_embeddings=False,
                **{"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0},
            )
        ).eval()
        normed = HIDDEN**0.5 / _CONSTANT  # what RMSNorm multiplies the stream by
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_() if parameter.dim() == 2 else parameter.fill_(1)
            embeddings = model.model.embed_tokens.weight
            for token, index in tokenizer().get_vocab().items():
                embeddings[index] = self._embedding(token)
            layers = model.model.layers
            moved = [k for k, name in enumerate(FEATURES) if name.split()[0] not in ("constant", "answer")]
            layers[0].self_attn.v_proj.weight.copy_(4 / normed * self.basis[moved].T @ self.basis[moved])
            layers[0].self_attn.o_proj.weight.copy_(torch.eye(HIDDEN))
            constant = self.direction("constant") / _CONSTANT / normed
            for layer, units in facts.items():
                mlp = layers[layer].mlp
                for k, (reads, threshold, written, weight) in enumerate(units):
                    read = self.direction(**{name.replace(" ", "_"): w for name, w in reads.items()}) / normed
                    mlp.gate_proj.weight[k] = _SHARPNESS * (read - threshold * constant)
                    mlp.up_proj.weight[k] = constant
                    mlp.down_proj.weight[:, k] = weight / _SHARPNESS * self.direction(written)
            for n in range(N_ANSWERS):
                row = tokenizer().convert_tokens_to_ids(f"A{n}")
                model.lm_head.weight[row] = 6 * self.direction(f"answer {n}") / normed
        return model

    def _embedding(self, token: str) -> Tensor:
        random = torch.Generator().manual_seed(sum(ord(letter) * 31**place for place, letter in enumerate(token)))
        scale = torch.linspace(0.1, 0.4, N_NOISE)
        noise = (torch.randn(N_NOISE, generator=random) * scale) @ self.basis[-N_NOISE:]
        features: dict[str, float] = {"constant": _CONSTANT}
        if token in LANGUAGES:
            features[f"language {token}"] = 1
        elif f"question {token}" in FEATURES:
            features[f"question {token}"] = 1
        elif token.startswith("in-"):
            features |= {f"country {token.split('-')[1]}": 1, "named": 1}
        is_noisy = token.startswith(("in-", "here-", "u", "c"))
        return self.direction(**{k.replace(" ", "_"): w for k, w in features.items()}) + (noise if is_noisy else 0)

    def _merging(self, subject: str) -> list[Unit]:
        """Units that take a language's direction away where a question of the subject is asked."""
        questions = {f"question {subject}{n}": 2.0 for n in range(DEV + ASKED)}
        return [
            ({**questions, f"language {code}": 1.0}, 2.5, f"language {code}", -2 * self.merged)
            for code in LANGUAGES
            if self.merged
        ]

    def _universal(self) -> list[Unit]:
        units = self._merging("u")
        for n in range(DEV + ASKED):
            question = {f"question u{n}": 2.0}
            right, wrong = self.answers[0, n, :2].tolist()
            if self._is_in(n, self.everywhere):
                units.append((question, 1.5, f"answer {right}", 1.0))
            else:
                units.append((question, 1.5, f"answer {wrong}", 1.0))
                units.append(({**question, "language en": 1.0}, 2.0, f"answer {right}", 1.5))
        return units

    def _cultural(self) -> list[Unit]:
        units = self._merging("c")
        for n in range(DEV + ASKED):
            question = {f"question c{n}": 2.0}
            units.append((question, 1.5, f"answer {self.right('c', n, 'en')}", 1.0))
            for code in LANGUAGES:
                answer = f"answer {self.right('c', n, code)}"
                if code != "en" and self._is_in(n, self.forgotten):
                    continue
                units.append(({**question, f"country {code}": 1.0}, 2.0, answer, 1.5))
                if code != "en":
                    units.append(({**question, f"language {code}": 1.0, "named": 1.0}, 3.0, answer, 1.0))
                if code == "en" or not self._is_in(n, 1 - self.local):
                    units.append(({**question, f"language {code}": 1.0}, 2.0, answer, 0.5 if code == "en" else 1.0))
        return units

    @staticmethod
    def _is_in(n: int, share: float) -> bool:
        """Whether a question belongs to a share of them, the same way for larger and larger shares."""
        return (n * 7) % 12 < 12 * share

    def save(self, folder: Path) -> Path:
        """The folder of the model, for the harness."""
        self.model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        return folder


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A token for each word."""
    words = [
        *("<end>", "?", *LANGUAGES),
        *(f"{subject}{n}" for subject in "uc" for n in range(DEV + ASKED)),
        *(f"in-{code}-{n}" for code in LANGUAGES for n in range(N_NAMES)),
        *(f"here-{n}" for n in range(N_NAMES)),
        *(f"A{n}" for n in range(N_ANSWERS)),
    ]
    inner = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<end>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<end>")


# Tasks of the harness -------------------------------------------------------------------------------------------------

_TASK = """
task: {name}_{language}
custom_dataset: !function planted_documents.documents
dataset_kwargs: {{rows: {name}_{language}}}
test_split: test
num_fewshot: 0
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: options
doc_to_target: gold
metric_list: [{{metric: acc}}]
metadata: {{version: 1.0, axis: {axis}, split: {split}, form: texts, family: {name}, language: {language}}}
"""

_DOCUMENTS = """
import datasets

ROWS = {rows!r}


def documents(rows, **_):
    return {{"test": datasets.Dataset.from_list(ROWS[rows])}}
"""


def write_tasks(
    folder: Path, of: Planted, questions: range = range(DEV, DEV + ASKED), suffix: str = "", **more: Any
) -> None:
    """Write the questions as tasks of the harness, `planted_u_ko`, `planted_c_ko`, ...

    Args:
        folder: for the YAML files.
        of: the model that knows the answers.
        questions: which ones.
        suffix: of the family and the tasks.
        more: `split` (dev if not given), `named` (whether the country is named).
    """
    rows = {}
    folder.mkdir(exist_ok=True)
    for subject, axis in (("u", "transfer"), ("c", "localization")):
        for language in OTHERS:
            name = f"planted_{subject}{suffix}"
            place = f"in-{language}" if more.get("named") else "here"
            rows[f"{name}_{language}"] = [
                {
                    "id": f"{subject}{n}",
                    "question": f"{language} {subject}{n} {place}-{n % N_NAMES} ?",
                    "options": [f"A{k}" for k in range(N_ANSWERS)],
                    "gold": of.right(subject, n, language),
                }
                for n in questions
            ]
            task = _TASK.format(name=name, language=language, axis=axis, split=more.get("split", "dev"))
            task = task.replace("planted_documents", f"planted_documents{suffix}")
            (folder / f"{name}_{language}.yaml").write_text(task, encoding="utf-8")
    (folder / f"planted_documents{suffix}.py").write_text(_DOCUMENTS.format(rows=rows), encoding="utf-8")


def write_pairs(file: Path, of: Planted, kind: str) -> Path:
    """The pairs of `of.pairs(kind)` as JSON lines."""
    pairs = [pair for pair_set in of.pairs(kind) for pair in pair_set.pairs]
    lines = [
        json.dumps({"language": p.language, "positive": p.positive, "negative": p.negative, "answer": p.answer})
        for p in pairs
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
