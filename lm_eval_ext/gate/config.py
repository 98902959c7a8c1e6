"""`gate.yaml`: which scores are held to what.

    alpha: 0.05            # how often an unchanged model may fail, over all rules together
    power: 0.8             # how surely a loss of the margin must be seen
    baseline: {model: google/gemma-3-12b-it, plan: ""}     # optional: any other baseline is refused
    rules:
      - axis: blend_decon  # task, group or family, as in `lm-eval-ext plane --y`
        metric: acc
        languages: [es, el, average]    # all, and their average, if not given
        margin: 0.03       # non-inferiority: a loss of this size must be excluded
      - {axis: blend_decon, languages: el, floor: 0.35}    # the score itself
      - {axis: gmmlu, chance: 0.25, margin: 0.05}          # no worse than guessing
      - {axis: transfer_mini_cloze, max_changed: 0.02}     # share of documents whose score may change at all

All numbers are shares between 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lm_eval_ext.errors import GateError
from lm_eval_ext.languages import normalise
from lm_eval_ext.stats.bootstrap import RESAMPLES
from lm_eval_ext.stats.power import POWER

Kind = Literal["non-inferiority", "floor", "chance", "unchanged"]

#: The macro average, as a language of a rule.
AVERAGE = "average"

#: Our defaults.
ALPHA = 0.05
MARGIN = 0.02
CHANCE_MARGIN = 0.05

_KIND_OF: dict[str, Kind] = {"floor": "floor", "chance": "chance", "max_changed": "unchanged"}
_GATE_KEYS = ("alpha", "power", "resamples", "seed", "baseline", "prompts", "rules")
_RULE_KEYS = ("axis", "metric", "languages", "margin", "floor", "chance", "max_changed", "better", "alpha", "power")


@dataclass(frozen=True)
class Rule:
    """One line of the gate, which holds for each of its languages.

    Attributes:
        axis: task, group or family.
        metric: per-document score, `metric` or `metric,filter`.
        languages: codes and `average`; empty means all the results have, and their average.
        kind: what is asked.
        limit: the floor, the level of chance, or the share of documents that may change; 0 for non-inferiority.
        margin: the loss that must be excluded.
        better: "higher" or "lower"; None: as the task says.
        alpha, power: of the tests.
    """

    axis: str
    metric: str = "acc"
    languages: tuple[str, ...] = ()
    kind: Kind = "non-inferiority"
    limit: float = 0.0
    margin: float = MARGIN
    better: Literal["higher", "lower"] | None = None
    alpha: float = ALPHA
    power: float = POWER

    @property
    def text(self) -> str:
        """What is asked, in words."""
        return {
            "non-inferiority": f"loses less than {100 * self.margin:g} points",
            "floor": f"at least {self.limit:g}",
            "chance": f"not {100 * self.margin:g} points below chance, {self.limit:g}",
            "unchanged": f"at most {100 * self.limit:g}% of the items change",
        }[self.kind]


@dataclass(frozen=True)
class Gate:
    """All rules.

    Attributes:
        rules: in the order of the file.
        baseline: what the baseline must be, by `model` and `plan`; empty where it may be anything.
        same_prompts: whether other prompts than the baseline's are refused.
        resamples, seed: of the bootstrap.
    """

    rules: tuple[Rule, ...]
    baseline: dict[str, str]
    same_prompts: bool = True
    resamples: int = RESAMPLES
    seed: int = 0


def read_gate(path: Path | str) -> Gate:
    """Read the rules of a gate.

    Raises:
        GateError: no such file, not YAML, or a key or value that means nothing; the message names key and valid values.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GateError(f"cannot read the gate {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise GateError(f"{path} is not text in UTF-8") from None
    except yaml.YAMLError as error:
        raise GateError(f"{path} is not YAML: {error}") from None
    return _Reader(str(path)).gate(content)


@dataclass(frozen=True)
class _Reader:
    """Turns parsed YAML into rules; `where` leads every message."""

    where: str

    def gate(self, content: Any) -> Gate:
        table = self._table(content, _GATE_KEYS)
        alpha = self._share(table, "alpha", ALPHA, below=0.5)
        power = self._share(table, "power", POWER)
        listed = table.get("rules")
        if not isinstance(listed, list) or not listed:
            raise self._wrong("rules", listed, "a list of at least one rule")
        wanted = _Reader(f"{self.where}: baseline")._table(table.get("baseline", {}), ("model", "plan"))
        return Gate(
            rules=tuple(
                _Reader(f"{self.where}: rule {number}")._rule(rule, alpha, power)
                for number, rule in enumerate(listed, start=1)
            ),
            baseline={key: str(value or "") for key, value in wanted.items()},
            same_prompts=self._choice(table, "prompts", ("same", "any")) != "any",
            resamples=self._whole(table, "resamples", RESAMPLES, at_least=100),
            seed=self._whole(table, "seed", 0, at_least=0),
        )

    def _rule(self, content: Any, alpha: float, power: float) -> Rule:
        table = self._table(content, _RULE_KEYS)
        kinds = [key for key in _KIND_OF if key in table]
        if len(kinds) > 1:
            raise GateError(f"{self.where}: {' and '.join(kinds)} in one rule; write a rule for each")
        limit_key = kinds[0] if kinds else None
        kind: Kind = _KIND_OF[limit_key] if limit_key else "non-inferiority"
        if "margin" in table and kind in ("floor", "unchanged"):
            raise GateError(f"{self.where}: margin has no meaning beside {limit_key}; leave it out")
        default_margin = {"non-inferiority": MARGIN, "chance": CHANCE_MARGIN}.get(kind)
        alpha = self._share(table, "alpha", alpha, below=0.5)
        power = self._share(table, "power", power)
        if power <= alpha:
            raise self._wrong("power", power, f"a share above alpha ({alpha:g})")
        better = self._choice(table, "better", ("higher", "lower"))
        if better == "lower" and kind in ("floor", "chance"):
            raise GateError(f"{self.where}: {limit_key} asks for a score of which more is better; better is 'lower'")
        return Rule(
            axis=self._text(table, "axis"),
            metric=self._text(table, "metric", "acc"),
            languages=self._languages(table),
            kind=kind,
            # None of the items may change: 0 is a meaningful share there only.
            limit=self._share(table, limit_key, None, zero=kind == "unchanged") if limit_key else 0.0,
            margin=self._share(table, "margin", default_margin) if default_margin else 0.0,
            better=better,
            alpha=alpha,
            power=power,
        )

    def _table(self, content: Any, valid: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(content, dict):
            raise GateError(
                f"{self.where}: got {content!r}, needed are keys with values; valid keys: {', '.join(valid)}"
            )
        if unknown := [str(key) for key in content if key not in valid]:
            raise GateError(f"{self.where}: unknown key {unknown[0]!r}; valid keys: {', '.join(valid)}")
        return content

    def _text(self, table: dict[str, Any], key: str, default: str = "") -> str:
        value = table.get(key, default)
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(key, table.get(key), "a name")
        return value.strip()

    def _languages(self, table: dict[str, Any]) -> tuple[str, ...]:
        value = table.get("languages", [])
        codes = [code.strip() for code in value.split(",")] if isinstance(value, str) else value
        # YAML reads a bare `no` as false: a language code must not turn into something else in silence.
        if not isinstance(codes, list) or not all(isinstance(code, str) and code for code in codes):
            raise self._wrong("languages", value, f"codes such as [ko, el] and {AVERAGE!r} (quote 'no')")
        if "languages" in table and not codes:
            raise self._wrong("languages", value, "at least one, or no such key for all")
        return tuple(dict.fromkeys(code if code == AVERAGE else normalise(code) for code in codes))

    def _choice(self, table: dict[str, Any], key: str, valid: tuple[str, str]) -> Any:
        if key in table and table[key] not in valid:
            raise self._wrong(key, table[key], " or ".join(valid))
        return table.get(key)

    def _share(
        self, table: dict[str, Any], key: str, default: float | None, *, below: float = 1.0, zero: bool = False
    ) -> float:
        value: Any = table.get(key, default)
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and value < below
        if not fits or not (value > 0 or (zero and value == 0)):
            hint = " (3 points are 0.03)" if isinstance(value, (int, float)) and value >= 1 else ""
            raise self._wrong(key, value, f"a share {'from' if zero else 'above'} 0, below {below:g}{hint}")
        return float(value)

    def _whole(self, table: dict[str, Any], key: str, default: int, *, at_least: int) -> int:
        value = table.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
            raise self._wrong(key, value, f"a whole number, at least {at_least}")
        return value

    def _wrong(self, key: str, value: Any, valid: str) -> GateError:
        return GateError(f"{self.where}: {key} is {'missing' if value is None else repr(value)}; needed: {valid}")
