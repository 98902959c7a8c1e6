"""Scoring requests, and the rows of tokens in which a forward answers them."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from lm_eval_ext.errors import ModelError
from lm_eval_ext.scoring.prefixes import shared_prefixes
from lm_eval_ext.scoring.token_trees import Tree, parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lm_eval_ext.scoring.lm_head import Token

log = logging.getLogger(__name__)


class Score(NamedTuple):
    """Of one continuation: its log-likelihood (natural logarithm), and whether greedy decoding would produce it."""

    log_likelihood: float
    is_greedy: bool

    @classmethod
    def of(cls, tokens: list[Token]) -> Score:
        """The score of a continuation from its tokens."""
        return cls(sum(log_probability for log_probability, _ in tokens), all(best for _, best in tokens))


class Request(NamedTuple):
    """What to score.

    Attributes:
        prompt: tokens before the first scored one, at least one.
        continuation: scored tokens, at least one.
        row: of the steering table.
        lead: how many of the scored tokens are steered as the end of the prompt, fewer than all: white space at the end
            of a prompt is scored with the option, as in the harness, and is still prompt to a generation.
    """

    prompt: tuple[int, ...]
    continuation: tuple[int, ...]
    row: int
    lead: int = 0


@dataclass
class Row:
    """One row of a forward.

    Attributes:
        row: of the steering table.
        tokens: all tokens of the sequence, including those whose keys and values are in the KV cache.
        prompt_length: how many of the tokens are the prompt, as it is steered; more than the row has where its end (`lead`)
            is in the branches.
        targets: requests, and the tokens of theirs that are scored at the end of the row.
        past: how many of the tokens are in the KV cache.
        parent: the row of the earlier forward whose keys and values continue here.
        branches: continuations of this row that need a forward of their own, without their last token, and their requests.
    """

    row: int
    tokens: tuple[int, ...]
    prompt_length: int
    targets: list[tuple[Request, tuple[int, ...]]] = field(default_factory=list)
    past: int = 0
    parent: int = 0
    branches: dict[tuple[int, ...], list[Request]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Number of tokens to run."""
        return len(self.tokens) - self.past

    @property
    def scored(self) -> int:
        """Number of positions at the end of the row whose logits are needed."""
        return max((len(target) for _, target in self.targets), default=0)

    def trees(self) -> Iterator[tuple[list[Request], Tree]]:
        """The prompt with its branches, as trees."""
        by_continuation = {request.continuation: request for request, _ in self.targets}
        lead = self.prompt_length - len(self.tokens)
        for part in parts(self.tokens, list(by_continuation)):
            yield [by_continuation[continuation] for continuation in part], Tree.grow(self.tokens, part, lead)


def not_a_number(where: str, dtype: torch.dtype, plan: str) -> ModelError:
    """The error for an output of NaN, which would be counted as an answer like any other.

    Args:
        where: the tasks.
        dtype: of the model.
        plan: of the steering; empty without.
    """
    advice = {
        torch.float16: ["use dtype=bfloat16 or dtype=float32 (float16 holds no number above 65504)"],
        torch.bfloat16: ["use dtype=float32"],
    }.get(dtype, [])
    advice += [f"lower the strength of {plan}"] if plan else []
    return ModelError(
        f"{where}: the model's output in {str(dtype).removeprefix('torch.')} is not a number (NaN), so that nothing can be "
        f"said of its answers: {', '.join([*advice, 'check whether the weights are damaged'])}"
    )


def rows_of(requests: Iterable[Request], max_length: int, *, shares: bool) -> list[Row]:
    """The rows that score all requests.

    The continuations of a prompt that differ only in their last token share a row. Where they differ earlier, they branch
    off from a row of the prompt if keys and values can be shared; otherwise each has a row of its own.

    Args:
        requests: distinct requests.
        max_length: most tokens of a forward; longer prompts are truncated from the left, as in the harness.
        shares: whether a row may continue from the keys and values of another.

    Raises:
        ModelError: a continuation longer than that.
    """
    by_prompt: dict[tuple[tuple[int, ...], int, tuple[int, ...]], list[Request]] = defaultdict(list)
    for request in requests:
        by_prompt[request.prompt, request.row, request.continuation[: request.lead]].append(request)
    n_requests = sum(map(len, by_prompt.values()))
    rows: list[Row] = []
    for (prompt, row, lead), group in by_prompt.items():
        fits = len(prompt) + max(len(request.continuation) for request in group) - 1 <= max_length
        if len({request.continuation[:-1] for request in group}) > 1 and fits and shares:
            branches: dict[tuple[int, ...], list[Request]] = defaultdict(list)
            for request in group:
                if len(request.continuation) > 1:
                    branches[request.continuation[:-1]].append(request)
            first = [(request, request.continuation[:1]) for request in group]
            rows.append(Row(row, prompt, len(prompt) + len(lead), first, branches=branches))
        else:
            rows.extend(_whole(group, max_length))
    if n_truncated := sum(len(row.tokens) < len(r.prompt) + len(c) - 1 for row in rows for r, c in row.targets):
        log.warning(
            "%d of %d requests are longer than the model's %d tokens: their prompts are truncated from the left",
            *(n_truncated, n_requests, max_length),
        )
    return rows


def _whole(group: list[Request], max_length: int) -> list[Row]:
    """A row for each distinct prompt plus continuation without its last token, truncated from the left if too long."""
    rows: dict[tuple[int, ...], Row] = {}
    for request in group:
        fed = request.continuation[:-1]  # the last token is only predicted
        if len(fed) >= max_length:
            raise ModelError(
                f"a continuation of {len(request.continuation)} tokens does not fit the model's {max_length}; "
                "raise max_length= or drop the document"
            )
        if fed not in rows:
            tokens = (request.prompt + fed)[-max_length:]
            rows[fed] = Row(request.row, tokens, len(tokens) - len(fed) + request.lead)
        rows[fed].targets.append((request, request.continuation))
    return list(rows.values())


def split_by_shared_prefix(prompts: Iterable[Row], n_last: int = 1) -> tuple[list[Row], list[tuple[Row, list[Row]]]]:
    """The prompts without a shared prefix that is worth a forward, and the shared prefixes with their prompts.

    Args:
        prompts: the rows of the prompts.
        n_last: how many tokens at a prompt's end may be steered otherwise than the rest (`last3`): no prefix holds them.
    """
    alone: list[Row] = []
    shared: list[tuple[Row, list[Row]]] = []
    by_row: dict[int, list[Row]] = defaultdict(list)
    for prompt in prompts:
        by_row[prompt.row].append(prompt)
    for row, group in by_row.items():
        # Without the prompts' last tokens: these are scored, and steered at positions such as `last`.
        ends = [max(0, min(row.prompt_length - n_last, len(row.tokens) - row.scored)) for row in group]
        for members, length in shared_prefixes([p.tokens[:end] for p, end in zip(group, ends, strict=True)]):
            prompts_of_group = [group[index] for index in members]
            if length:
                prefix = Row(row, prompts_of_group[0].tokens[:length], length + n_last)
                shared.append((prefix, prompts_of_group))
            else:
                alone.extend(prompts_of_group)
    return alone, shared
