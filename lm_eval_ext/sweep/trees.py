"""A prompt and all its continuations as one row of tokens: the prompt, then the trie of the continuations' tokens.

Continuations that begin alike share nodes, and all of them share the prompt. In a forward every node sees the prompt and
its own ancestors only, which a 4-dimensional attention mask says, so that one row gives the log-likelihoods of all
continuations without a copy of any keys and values (tree attention, as in speculative decoding: Miao et al. 2024,
SpecInfer). The last token of a continuation is only ever predicted, so it needs no node.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

#: Parent of the first tokens of a continuation.
PROMPT = -1


class Target(NamedTuple):
    """A token to score, and where: after node `node`, or after the prompt (`PROMPT`)."""

    node: int
    token: int


@dataclass(frozen=True)
class Tree:
    """One prompt and some continuations.

    Attributes:
        prompt: its tokens, at least one.
        tokens: token of each node; a parent comes before its children.
        parents: parent of each node, `PROMPT` at the top.
        targets: for each continuation its tokens and where they are scored.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    targets: tuple[tuple[Target, ...], ...]

    @classmethod
    def grow(cls, prompt: tuple[int, ...], continuations: Iterable[tuple[int, ...]]) -> Tree:
        """The tree of one prompt and its continuations, in their order (neither empty)."""
        nodes: dict[tuple[int, ...], int] = {}
        tokens: list[int] = []
        parents: list[int] = []
        targets = []
        for continuation in continuations:
            at, path = PROMPT, []
            for length, token in enumerate(continuation):
                path.append(Target(at, token))
                if length == len(continuation) - 1:
                    break
                begun = continuation[: length + 1]
                if begun not in nodes:
                    nodes[begun] = len(tokens)
                    tokens.append(token)
                    parents.append(at)
                at = nodes[begun]
            targets.append(tuple(path))
        return cls(prompt, tuple(tokens), tuple(parents), tuple(targets))

    @cached_property
    def depths(self) -> list[int]:
        """Place of each node after the prompt, from 0."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent == PROMPT else depths[parent] + 1)
        return depths

    @cached_property
    def lineage(self) -> Tensor:
        """[nodes, nodes], true where the column is the row itself or one of its ancestors."""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent != PROMPT:
                seen[node] |= seen[parent]
        return seen

    @cached_property
    def scored(self) -> list[int]:
        """Nodes (and `PROMPT`) after which some token is scored, sorted."""
        return sorted({target.node for path in self.targets for target in path})

    def __len__(self) -> int:
        return len(self.prompt) + len(self.tokens)


@dataclass(frozen=True)
class Layout:
    """What a forward of some rows sees.

    Attributes:
        ids: [rows, columns] tokens; 0 at padding.
        positions: [rows, columns] places in the text.
        visible: [rows, columns, past + columns], true where the row's token may look.
        past_positions: [rows, past] places of the keys and values that were computed before.
    """

    ids: Tensor
    positions: Tensor
    visible: Tensor
    past_positions: Tensor

    def mask(self, dtype: torch.dtype, window: int | None = None) -> Tensor:
        """The additive attention mask [rows, 1, columns, past + columns]; a window looks back over that many tokens."""
        visible = self.visible
        if window is not None:
            keys = torch.cat([self.past_positions, self.positions], dim=1)
            visible = visible & (self.positions[:, :, None] - keys[:, None, :] < window)
        hidden = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
        return hidden[:, None]


@dataclass(frozen=True)
class Batch:
    """Trees of one forward: prompts end in the same column, nodes follow it.

    Attributes:
        trees: the rows.
        width: columns of the longest prompt.
        nodes: columns of the most nodes.
    """

    trees: Sequence[Tree]

    @cached_property
    def width(self) -> int:
        """Columns of the prompts."""
        return max(len(tree.prompt) for tree in self.trees)

    @cached_property
    def nodes(self) -> int:
        """Columns of the nodes."""
        return max(len(tree.tokens) for tree in self.trees)

    @cached_property
    def starts(self) -> Tensor:
        """[rows] column of each prompt's first token."""
        return torch.tensor([self.width - len(tree.prompt) for tree in self.trees])

    @cached_property
    def whole(self) -> Layout:
        """Prompts and nodes, computed from nothing."""
        columns = self.width + self.nodes
        ids = torch.zeros(len(self.trees), columns, dtype=torch.long)
        positions = torch.zeros_like(ids)
        visible = torch.eye(columns, dtype=torch.bool).repeat(len(self.trees), 1, 1)  # padding sees itself
        causal = torch.ones(self.width, self.width, dtype=torch.bool).tril()
        for row, tree in enumerate(self.trees):
            start, end = int(self.starts[row]), self.width + len(tree.tokens)
            ids[row, start:end] = torch.tensor(tree.prompt + tree.tokens)
            positions[row, start : self.width] = torch.arange(len(tree.prompt))
            positions[row, self.width : end] = len(tree.prompt) + torch.tensor(tree.depths, dtype=torch.long)
            visible[row, start : self.width, start : self.width] = causal[start:, start:]
            visible[row, self.width : end, start : self.width] = True
            visible[row, self.width : end, self.width : end] = tree.lineage
        return Layout(ids, positions, visible, torch.zeros(len(self.trees), 0, dtype=torch.long))

    def ends(self, copies: int) -> Layout:
        """`copies` of each prompt's last token with its nodes, side by side; the prompts' other tokens are the past.

        The copies of one row do not see each other.
        """
        whole, past, block = self.whole, self.width - 1, 1 + self.nodes
        ids = whole.ids[:, past:].repeat(1, copies)
        positions = whole.positions[:, past:].repeat(1, copies)
        own = torch.zeros(len(self.trees), copies * block, copies * block, dtype=torch.bool)
        for copy in range(copies):
            at = slice(copy * block, (copy + 1) * block)
            own[:, at, at] = whole.visible[:, past:, past:]
        visible = torch.cat([whole.visible[:, past:, :past].repeat(1, copies, 1), own], dim=2)
        return Layout(ids, positions, visible, whole.positions[:, :past])

    @cached_property
    def scored(self) -> tuple[list[int], list[int]]:
        """Row, and column of `whole`, of every position that scores a token: row by row, as in `Tree.scored`."""
        found = [(row, self.width + node) for row, tree in enumerate(self.trees) for node in tree.scored]
        return [row for row, _ in found], [column for _, column in found]


def batches(trees: Sequence[Tree], budget: int) -> list[list[int]]:
    """Indices of trees of similar shape together, the largest first.

    A batch holds at most `budget` tokens with its padding, or one tree. Prompts and nodes are padded each by themselves,
    so that trees are sorted by nodes, roughly, and then by prompt.
    """
    shapes = [(len(tree.prompt), len(tree.tokens)) for tree in trees]
    order = sorted(range(len(trees)), key=lambda index: (-(shapes[index][1] // _ALIKE), -shapes[index][0]))
    found: list[list[int]] = []
    widest = nodes = 0
    for index in order:
        prompt, own = shapes[index]
        widest, nodes = max(widest, prompt), max(nodes, own)
        if found and (widest + nodes) * (len(found[-1]) + 1) <= budget:
            found[-1].append(index)
        else:
            found.append([index])
            widest, nodes = prompt, own
    return found


#: Trees whose numbers of nodes differ by less may share a batch: what that pads costs less than small batches.
_ALIKE = 8
