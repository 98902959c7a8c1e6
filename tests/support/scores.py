"""Requests of many shapes, and how answers are asked for and compared."""

from __future__ import annotations

from typing import Any

import pytest

from support import tiny

QUESTIONS = [text[: 20 + 9 * i] for i, text in enumerate(tiny.TEXTS.values())]
LONG = " ".join(tiny.TEXTS.values()) * 2  # more than the context of 128 tokens

PAIRS: dict[str, list[tuple[str, str]]] = {
    "letters": [(f"{question}\nAnswer:", f" {letter}") for question in QUESTIONS for letter in "ABCD"],
    "options": [
        (question, option)
        for question in QUESTIONS
        for option in (" rice", " uno dos tres", " 국조", "米饭。", " the answer is rice")
    ],
    "unconditional": [("", option) for option in (" rice", " uno dos", " 국조", "<begin> rice", "<end> x")],
    "one continuation": [(question, " is the national bird") for question in QUESTIONS],
    "duplicates": [(QUESTIONS[0], " rice"), (QUESTIONS[1], " un"), (QUESTIONS[0], " rice"), (QUESTIONS[0], " rice")],
    "shared beginnings": [
        (QUESTIONS[2], " uno" + tail) for tail in ("", " dos", " dos tres", " dos cuatro", " dos tres cinco", " seis")
    ],
    "one-token prompts": [(word, option) for word in ("W", "x", "새") for option in (" rice", " rice is", "!")],
    "spaces": [("Which  ", "bird"), ("Which ", " bird is"), ("Which\n", "bird")],
    "too long": [(LONG[at:], option) for at in (0, 7) for option in (" A", " B", " rice is", " rice is the answer")],
    "just fits": [(LONG[-160 - n :], " the answer is rice") for n in range(-60, 60, 9)],
}
ALL = [pair for pairs in PAIRS.values() for pair in pairs]

Answers = list[tuple[float, bool]]


def ask(model: Any, pairs: list[tuple[str, str]], languages: list[str] | None = None) -> Answers:
    answers: Answers = model.loglikelihood(tiny.requests("loglikelihood", pairs, languages), disable_tqdm=True)
    assert all(type(value) is float and type(greedy) is bool for value, greedy in answers)
    return answers


SHOTS = ["".join(f"{text[9 * n : 9 * n + 24]} = {n}\n" for n in range(2)) for text in tiny.TEXTS.values()]

FEW_SHOT = [
    (shots + question[: 4 + 5 * n], option)
    for shots in SHOTS[:2]
    for n, question in enumerate(QUESTIONS)
    for option in (" rice", " uno dos", " 국조 is")
]


def assert_same(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Equal answers: numbers within 1e-5 (relative where large), all else exactly."""
    if isinstance(expected, float) and not isinstance(expected, bool):
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)
    elif isinstance(expected, dict):
        assert set(found) == set(expected)
        for key, value in expected.items():
            assert_same(found[key], value, tolerance)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b, tolerance)
    else:
        assert found == expected
