"""Steering plans: one string that defines what is added where, how strongly, and at which tokens.

Grammar (spaces are not allowed, so that a plan survives `--model_args`)::

    plan         = intervention { "+" intervention }
    intervention = kind [ "~" control ] "@" layers [ ":" gamma ] [ "/" position ]
    kind         = "en" | "loc" | any kind in the vector file
    control      = "random" [ seed ] | "shuffled" [ number ] | "other" | language
    layers       = layer [ "-" layer ]
    layer        = integer (0-based output of a block) | depth "%"
    gamma        = number | number "%"
    position     = "prompt" | "all" | "last" [ count ] | "first" count | "generated"

`en@20:2+loc@28:2` is the paper's surgical steering on Gemma 3 12B: gamma 2 for both, layers 20 and 28 of 48. A depth of
42% is the layer `round(0.42 * layers)`. A plain gamma multiplies the raw vector, h + gamma v; `5%` scales the vector to 5
per cent of the layer's mean residual norm. A range adds each layer's own vector at each of its layers. `loc~zh` uses the
Chinese vector for every request, `loc~other` for each language the vector of the next language in the file, `loc~random7` a
random direction of the same norm (seed 7), and `loc~shuffled3` what the estimator learnt from shuffled pairs (the control
3 of the vector file); these are controls.

Positions count tokens of the prompt as it is scored (few-shot examples, chat template and a beginning-of-sequence token
included; after truncation from the left, if any). `last3` are its last three tokens and, as with `last`, whatever is
generated after it; `first2` its first two. `generated` is what follows the prompt: generated tokens, or where options are
scored the options' own (an option of one token, such as a letter, is only predicted and has none).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import NoReturn

from lm_eval_ext.errors import PlanError

#: Which tokens are steered: one of `POSITIONS`, or `last` or `first` with a count (`last3`, `first2`).
Position = str
POSITIONS: tuple[Position, ...] = ("prompt", "last", "all", "generated")
VALID_POSITIONS = "prompt, last, all, generated, or with a count last3, first2"

#: Where vectors are added unless a plan says otherwise (our default; the paper does not say).
DEFAULT_POSITION: Position = "prompt"

#: The paper's EN strength. For LOC none is known; 2 is our default.
DEFAULT_GAMMA = 2.0

_KIND = r"[A-Za-z_]\w*"
_EXAMPLE = "a plan looks like en@42%:2+loc@58%:2 (kind@layer:gamma, joined by +)"


@dataclass(frozen=True)
class Layer:
    """A decoder layer, by number or by depth (a share of the layer count)."""

    value: float
    is_depth: bool

    def resolve(self, n_layers: int) -> int:
        """The 0-based layer in a model of `n_layers`. A depth rounds half up and never passes the last layer.

        Raises:
            PlanError: a number that the model does not have.
        """
        if self.is_depth:
            return min(math.floor(self.value / 100 * n_layers + 0.5), n_layers - 1)
        if self.value >= n_layers:
            raise PlanError(
                f"layer {int(self.value)} does not exist: the model has {n_layers} decoder layers, "
                f"valid: 0-{n_layers - 1} or a depth such as 58%"
            )
        return int(self.value)

    def __str__(self) -> str:
        return f"{_decimal(self.value)}%" if self.is_depth else f"{int(self.value)}"


@dataclass(frozen=True)
class Gamma:
    """Strength: a multiple of the raw vector, or a share of the layer's mean residual norm."""

    value: float
    is_relative: bool = False

    def __str__(self) -> str:
        return _decimal(self.value) + ("%" if self.is_relative else "")


@dataclass(frozen=True)
class Intervention:
    """One term of a plan: add `gamma` times the vectors of `kind` after the layers `first` to `last`."""

    kind: str
    first: Layer
    last: Layer
    gamma: Gamma
    control: str | None = None
    position: Position | None = None

    def layers(self, n_layers: int) -> range:
        """The 0-based layers in a model of `n_layers`.

        Raises:
            PlanError: a layer the model does not have, or a range that runs backwards.
        """
        first, last = self.first.resolve(n_layers), self.last.resolve(n_layers)
        if last < first:
            raise PlanError(f"the layer range of {self} runs backwards ({first} to {last})")
        return range(first, last + 1)

    @property
    def random_seed(self) -> int | None:
        """The seed of a random control, else None."""
        if self.control is None or not (match := re.fullmatch(r"random(\d*)", self.control)):
            return None
        return int(match[1] or 0)

    @property
    def shuffled(self) -> int | None:
        """The number of a control of shuffled labels, else None."""
        if self.control is None or not (match := re.fullmatch(r"shuffled(\d*)", self.control)):
            return None
        return int(match[1] or 0)

    @property
    def is_other(self) -> bool:
        """Whether each language gets another language's vector."""
        return self.control == "other"

    @property
    def fixed_language(self) -> str | None:
        """The language whose vector is used for every request, else None."""
        names_no_language = self.is_other or self.random_seed is not None or self.shuffled is not None
        return None if names_no_language else self.control

    def __str__(self) -> str:
        layers = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        control = f"~{self.control}" if self.control else ""
        position = f"/{self.position}" if self.position else ""
        return f"{self.kind}{control}@{layers}:{self.gamma}{position}"


@dataclass(frozen=True)
class Plan:
    """Interventions that apply together. An empty plan leaves the model as it is. The module has the grammar.

    Attributes:
        interventions: its terms.
        chosen_on: families of tasks on which it was chosen, where it was read from the `plan.yaml` of a sweep.

    Example:
        >>> plan = lx.Plan.parse("en@42%:2+loc~random7@28:5%/last")
        >>> [(term.kind, term.control, str(term.gamma), term.position) for term in plan.interventions]
        [('en', None, '2', None), ('loc', 'random7', '5%', 'last')]
        >>> list(plan.interventions[0].layers(48))  # 0-based decoder layers of a model of 48
        [20]
    """

    interventions: tuple[Intervention, ...] = ()
    chosen_on: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def read(cls, text: str | None) -> Plan:
        """`parse`, or the plan of a `plan.yaml` that a sweep wrote, whose path is given, with what it was chosen on.

        Raises:
            PlanError: a mistake in the grammar, or a file that is not one of a sweep.
        """
        if not text or not text.endswith((".yaml", ".yml")):
            return cls.parse(text)
        from lm_eval_ext.configs import read_yaml

        # Without numbers: of these words only texts are read.
        record = read_yaml(Path(text).expanduser(), PlanError, "plan", floats=False)
        if not isinstance(record, dict) or not isinstance(record.get("steer"), str):
            raise PlanError(f"{text} has no key 'steer' with a plan; give the plan.yaml of a sweep, or the plan itself")
        chosen_on = record.get("chosen_on")
        names = chosen_on.values() if isinstance(chosen_on, dict) else ()
        return cls(cls.parse(record["steer"]).interventions, tuple(str(name) for name in names if name))

    @classmethod
    def parse(cls, text: str | None) -> Plan:
        """Read a plan; None and the empty string are the empty plan.

        Raises:
            PlanError: a mistake in the grammar; the message points at the character.
        """
        return cls(tuple(_Parser(text).interventions())) if text else cls()

    def __bool__(self) -> bool:
        return bool(self.interventions)

    def __str__(self) -> str:
        return "+".join(map(str, self.interventions))


class _Parser:
    """A recursive-descent parser of the grammar; errors give the position in the text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.index = 0

    def interventions(self) -> list[Intervention]:
        terms = [self._intervention()]
        while self._take(r"\+"):
            terms.append(self._intervention())
        if self.index < len(self.text):
            self._fail("expected '+', ':', '/' or the end")
        return terms

    def _intervention(self) -> Intervention:
        kind = self._need(_KIND, "a kind of vector, such as en or loc")
        control = (
            self._need(r"[A-Za-z]\w*", "'random7', 'shuffled3', 'other' or a language code")
            if self._take("~")
            else None
        )
        self._need("@", "'@' and a layer")
        first = self._layer()
        last = self._layer() if self._take("-") else first
        gamma = self._gamma() if self._take(":") else Gamma(DEFAULT_GAMMA)
        position = self._position() if self._take("/") else None
        return Intervention(kind, first, last, gamma, control, position)

    def _layer(self) -> Layer:
        start = self.index
        number = self._need(r"[0-9]+(?:\.[0-9]+)?", "a layer: 0, 1, 2 ... or a depth such as 58%")
        if self._take("%"):
            if float(number) > 100:
                self.index = start
                self._fail("a depth is at most 100%")
            return Layer(float(number), is_depth=True)
        if "." in number:
            self.index = start
            self._fail("a layer is a whole number, or a depth with a per cent sign")
        return Layer(int(number), is_depth=False)

    def _gamma(self) -> Gamma:
        start = self.index
        number = float(
            self._need(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]-?[0-9]+)?", "a strength such as 2, -0.5 or 5%")
        )
        if not math.isfinite(number):
            self.index = start
            self._fail("a strength must be finite")
        return Gamma(number, is_relative=bool(self._take("%")))

    def _position(self) -> Position:
        start = self.index
        word = self._need(r"\w*", "a position")
        try:
            return parse_position(word)
        except PlanError:
            self.index = start
            self._fail(_AFTER if word == "after" else f"a position is one of {VALID_POSITIONS}")

    def _take(self, pattern: str) -> str | None:
        match = re.compile(pattern).match(self.text, self.index)
        if match is None:
            return None
        self.index = match.end()
        return match[0]

    def _need(self, pattern: str, expected: str) -> str:
        match = self._take(pattern)
        if match is None:
            self._fail(f"expected {expected}")
        return match

    def _fail(self, what: str) -> NoReturn:
        got = repr(self.text[self.index]) if self.index < len(self.text) else "the end"
        raise PlanError(
            f"steering plan, character {self.index + 1}: {what}, got {got}\n  {self.text}\n  {' ' * self.index}^\n{_EXAMPLE}"
        )


def is_kind(text: str) -> bool:
    """Whether a text is a valid name of a kind in a plan."""
    return re.fullmatch(_KIND, text) is not None


def _decimal(value: float) -> str:
    """A number as the grammar reads it: all significant digits, and no exponent."""
    return f"{Decimal(repr(value)).normalize():f}"


_AFTER = (
    "'after' (the words that two wordings do not share, and what follows them) is for extraction only: a plan steers one "
    "wording, in which nothing says where they would be; use a count, such as last8"
)


def parse_position(text: str) -> Position:
    """A position given by the user, in its one spelling (`last1` is `last`).

    Raises:
        PlanError: none of `VALID_POSITIONS`.
    """
    if text in POSITIONS:
        return text
    if match := re.fullmatch(r"(last|first)0*([1-9][0-9]{0,5})", text):
        return "last" if match[1] + match[2] == "last1" else match[1] + match[2]
    if text == "after":
        raise PlanError(_AFTER)
    raise PlanError(f"positions={text!r} is unknown, valid: {VALID_POSITIONS}")


def n_last(position: Position) -> int:
    """How many tokens at the prompt's end a position covers: 1 of `last`, 3 of `last3`; 0 of the others."""
    return _count(position, "last")


def n_first(position: Position) -> int:
    """How many tokens at the prompt's start a position covers: 2 of `first2`; 0 of the others."""
    return _count(position, "first")


def position_order(position: Position) -> tuple[int, str, int]:
    """A sort key: the order of `POSITIONS`, then those with a count."""
    if position in POSITIONS:
        return POSITIONS.index(position), "", 0
    return len(POSITIONS), position.rstrip("0123456789"), n_last(position) or n_first(position)


def _count(position: Position, end: str) -> int:
    if position == end:
        return 1
    rest = position.removeprefix(end)
    return int(rest) if rest != position and rest.isdigit() else 0
