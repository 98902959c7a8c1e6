"""A prompt and all its continuations as one row of tokens: the prompt, then the trie of the continuations' tokens.

Continuations with a common prefix share nodes, and all of them share the prompt. In a forward a 4-dimensional attention mask
lets every node attend to the prompt and to its own ancestors only, so that one row gives the log-likelihoods of all
continuations without copies of keys and values (tree attention, as in speculative decoding: Miao et al. 2024, SpecInfer).
The last token of a continuation is only predicted, so it needs no node.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

#: Parent of the first tokens of a continuation.
PROMPT = -1

#: Columns of a row that holds several trees: wider rows have less padding but compute more masked scores (our default).
PACKED_COLUMNS = 128

#: Trees whose numbers of nodes differ by less may share a batch: the padding costs less than small batches would.
_SIMILAR_NODES = 8

#: Most nodes of one tree, unless its prompt is longer; beyond that it is split, as every node is masked against all others.
MAX_NODES = 96


class Target(NamedTuple):
    """A token to score after node `node`, or after the prompt (`PROMPT`)."""

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
        lead: how many of the first nodes, a chain that all continuations begin with, are steered as the prompt's end.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    targets: tuple[tuple[Target, ...], ...]
    lead: int = 0

    @classmethod
    def grow(cls, prompt: tuple[int, ...], continuations: Iterable[tuple[int, ...]], lead: int = 0) -> Tree:
        """The tree of one prompt and its continuations, in their order (neither empty).

        Args:
            prompt, continuations: tokens.
            lead: how many tokens all continuations have in common that are steered as the prompt's end.
        """
        nodes: dict[tuple[int, ...], int] = {}
        tokens: list[int] = []
        parents: list[int] = []
        targets = []
        for continuation in continuations:
            parent, path = PROMPT, []
            for length, token in enumerate(continuation):
                path.append(Target(parent, token))
                if length == len(continuation) - 1:
                    break
                prefix = continuation[: length + 1]
                if prefix not in nodes:
                    nodes[prefix] = len(tokens)
                    tokens.append(token)
                    parents.append(parent)
                parent = nodes[prefix]
            targets.append(tuple(path))
        return cls(prompt, tuple(tokens), tuple(parents), tuple(targets), lead)

    @cached_property
    def depths(self) -> list[int]:
        """Number of ancestors of each node in the tree; positions after the prompt."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent == PROMPT else depths[parent] + 1)
        return depths

    @cached_property
    def ancestor_mask(self) -> Tensor:
        """[nodes, nodes], true where the column is the row itself or one of its ancestors."""
        mask = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent != PROMPT:
                mask[node] |= mask[parent]
        return mask

    @cached_property
    def scored(self) -> list[int]:
        """Nodes (and `PROMPT`) after which some token is scored, sorted."""
        return sorted({target.node for path in self.targets for target in path})

    def __len__(self) -> int:
        return len(self.prompt) + len(self.tokens)


class Layout(NamedTuple):
    """The inputs of a forward.

    Attributes:
        ids: [rows, columns] token ids; 0 at padding.
        positions: [rows, columns] position ids.
        ancestor_mask: [rows, columns, past + columns], true where a token attends: to itself and to what precedes it in its
            own text.
        past_positions: [rows, past] position ids of the keys and values in the KV cache.
    """

    ids: Tensor
    positions: Tensor
    ancestor_mask: Tensor
    past_positions: Tensor

    def mask(self, dtype: torch.dtype, window: int | None = None) -> Tensor:
        """The additive attention mask [rows, 1, columns, past + columns], with a sliding window if one is given."""
        attended = self.ancestor_mask
        if window is not None:
            keys = torch.cat([self.past_positions, self.positions], dim=1)
            attended = attended & (self.positions[:, :, None] - keys[:, None, :] < window)
        additive = torch.zeros(attended.shape, dtype=dtype).masked_fill_(~attended, torch.finfo(dtype).min)
        return additive[:, None]


class Place(NamedTuple):
    """Where a tree is in a batch: its row, the column of its first token, and that of its first node.

    Nodes follow their prompt directly: its last token is at column `nodes + PROMPT`.
    """

    row: int
    start: int
    nodes: int


class Batch(ABC):
    """The trees of one forward, which do not attend to each other.

    Args:
        trees: at least one.
    """

    def __init__(self, trees: Sequence[Tree]) -> None:
        self.trees = trees

    @staticmethod
    @abstractmethod
    def divide(trees: Sequence[Tree], budget: int) -> list[list[int]]:
        """Batches of trees of similar shape, by index, the largest first: at most `budget` tokens, or one tree."""

    @property
    @abstractmethod
    def places(self) -> list[Place]:
        """The place of each tree."""

    @cached_property
    def whole(self) -> Layout:
        """All tokens of all trees, without a KV cache."""
        rows = 1 + max(place.row for place in self.places)
        columns = max(place.nodes + len(tree.tokens) for place, tree in zip(self.places, self.trees, strict=True))
        ids = torch.zeros(rows, columns, dtype=torch.long)
        positions = torch.zeros_like(ids)
        mask = torch.eye(columns, dtype=torch.bool).repeat(rows, 1, 1)  # padding attends to itself
        longest = max(len(tree.prompt) for tree in self.trees)
        causal = torch.ones(longest, longest, dtype=torch.bool).tril()
        for (row, start, nodes), tree in zip(self.places, self.trees, strict=True):
            length, end = len(tree.prompt), nodes + len(tree.tokens)
            prompt = slice(start, nodes)
            ids[row, prompt] = torch.tensor(tree.prompt)
            positions[row, prompt] = torch.arange(length)
            mask[row, prompt, prompt] = causal[:length, :length]
            if tree.tokens:
                ids[row, nodes:end] = torch.tensor(tree.tokens)
                positions[row, nodes:end] = length + torch.tensor(tree.depths)
                mask[row, nodes:end, prompt] = True
                mask[row, nodes:end, nodes:end] = tree.ancestor_mask
        return Layout(ids, positions, mask, torch.zeros(rows, 0, dtype=torch.long))

    @cached_property
    def owner(self) -> Tensor:
        """[rows, columns] index of the tree that a token belongs to; of padding, that of any."""
        owner = torch.zeros_like(self.whole.ids)
        for index, (place, tree) in enumerate(zip(self.places, self.trees, strict=True)):
            owner[place.row, place.start : place.nodes + len(tree.tokens)] = index
        return owner

    @cached_property
    def spans(self) -> tuple[Tensor, Tensor, Tensor]:
        """[rows, columns] each: the column, that of the first token of the token's prompt, and that of the first after it.

        `Tree.lead` counts as prompt. Padding belongs to no prompt.
        """
        start = torch.zeros_like(self.whole.ids)
        end = torch.zeros_like(start)
        for place, tree in zip(self.places, self.trees, strict=True):
            of_tree = slice(place.start, place.nodes + len(tree.tokens))
            start[place.row, of_tree], end[place.row, of_tree] = place.start, place.nodes + tree.lead
        return torch.arange(start.shape[1]).expand_as(start), start, end

    @cached_property
    def scored(self) -> tuple[list[int], list[int]]:
        """Row and column of `whole` of every position that scores a token: tree by tree, as in `Tree.scored`."""
        positions = [
            (place.row, place.nodes + node)
            for place, tree in zip(self.places, self.trees, strict=True)
            for node in tree.scored
        ]
        return [row for row, _ in positions], [column for _, column in positions]


class Packed(Batch):
    """Several trees in a row, so that there is little padding."""

    @staticmethod
    def divide(trees: Sequence[Tree], budget: int) -> list[list[int]]:
        """See `Batch.divide`."""
        batches: list[list[int]] = []
        n_tokens = 0
        for index in sorted(range(len(trees)), key=lambda index: -len(trees[index])):
            n_tokens += len(trees[index])
            if not batches or n_tokens > budget:
                batches.append([])
                n_tokens = len(trees[index])
            batches[-1].append(index)
        return batches

    @cached_property
    def places(self) -> list[Place]:
        """First fit, the longest tree first."""
        width = max(PACKED_COLUMNS, *(len(tree) for tree in self.trees))
        ends: list[int] = []
        places: dict[int, Place] = {}
        for index in sorted(range(len(self.trees)), key=lambda index: -len(self.trees[index])):
            tree = self.trees[index]
            row = next((row for row, end in enumerate(ends) if end + len(tree) <= width), len(ends))
            if row == len(ends):
                ends.append(0)
            places[index] = Place(row, ends[row], ends[row] + len(tree.prompt))
            ends[row] += len(tree)
        return [places[index] for index in range(len(self.trees))]


class Aligned(Batch):
    """A row for each tree; all prompts end in the same column, so that rows can continue from a shared KV cache."""

    @staticmethod
    def divide(trees: Sequence[Tree], budget: int) -> list[list[int]]:
        """See `Batch.divide`; tokens are counted with their padding.

        Prompts and nodes are padded separately, so trees are sorted by their number of nodes, roughly, and then by prompt.
        """
        shapes = [(len(tree.prompt), len(tree.tokens)) for tree in trees]
        order = sorted(range(len(trees)), key=lambda index: (-(shapes[index][1] // _SIMILAR_NODES), -shapes[index][0]))
        batches: list[list[int]] = []
        width = nodes = 0
        for index in order:
            prompt, n_nodes = shapes[index]
            width, nodes = max(width, prompt), max(nodes, n_nodes)
            if batches and (width + nodes) * (len(batches[-1]) + 1) <= budget:
                batches[-1].append(index)
            else:
                batches.append([index])
                width, nodes = prompt, n_nodes
        return batches

    @cached_property
    def width(self) -> int:
        """Columns of the prompts."""
        return max(len(tree.prompt) for tree in self.trees)

    @cached_property
    def nodes(self) -> int:
        """Columns of the nodes."""
        return max(len(tree.tokens) for tree in self.trees)

    @cached_property
    def places(self) -> list[Place]:
        """Prompts are padded on the left and end before column `width`."""
        return [Place(row, self.width - len(tree.prompt), self.width) for row, tree in enumerate(self.trees)]

    def ends(self, copies: int) -> Layout:
        """`copies` of each prompt's last token with its nodes, side by side; the prompts' other tokens are in the KV cache.

        The copies of one row do not attend to each other.
        """
        whole, past, block = self.whole, self.width - 1, 1 + self.nodes
        ids = whole.ids[:, past:].repeat(1, copies)
        positions = whole.positions[:, past:].repeat(1, copies)
        block_mask = torch.zeros(len(self.trees), copies * block, copies * block, dtype=torch.bool)
        for copy in range(copies):
            columns = slice(copy * block, (copy + 1) * block)
            block_mask[:, columns, columns] = whole.ancestor_mask[:, past:, past:]
        mask = torch.cat([whole.ancestor_mask[:, past:, :past].repeat(1, copies, 1), block_mask], dim=2)
        return Layout(ids, positions, mask, whole.positions[:, :past])


def parts(prompt: tuple[int, ...], continuations: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """The continuations of one prompt in groups, one for each tree of at most `MAX_NODES` nodes."""
    max_nodes = max(MAX_NODES, len(prompt))
    groups: list[list[tuple[int, ...]]] = []
    nodes = 0
    for continuation in continuations:
        nodes += len(continuation) - 1  # an upper bound: shared nodes are counted twice
        if not groups or nodes > max_nodes:
            groups.append([])
            nodes = len(continuation) - 1
        groups[-1].append(continuation)
    return groups


def row_length(prompt: int, nodes: int) -> int:
    """Most tokens of a tree of a prompt of so many tokens whose continuations have so many nodes; see `parts`."""
    return prompt + min(nodes, max(MAX_NODES, prompt))
