"""What scoring should take on a machine: floating-point operations and bytes counted per case, against the machine's peaks.

    python benchmarks/roofline.py                  # measures this machine's peaks, predicts rows and compares them
    python benchmarks/roofline.py --expect         # predictions only: an H200 and a node of eight, no measurement

A forward is a list of steps. A matrix product takes the longer of its operations at the peak of products and its bytes at
the memory's bandwidth; what is done element by element takes its bytes, or its exponentials, at a speed measured on arrays
of the same size. The speeds are four numbers of the machine, measured in seconds and none of them fitted to the cases.

The rows for machines that are not at hand are predictions. Their peaks are the vendor's, and `REACHED` of them is taken for
granted: what large products and copies usually reach.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest import mock

from bench import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: How far a prediction may be off.
TOLERANCE = 0.25

#: Share of a vendor's peak that large products and copies reach.
REACHED = 0.75


@dataclass(frozen=True)
class Machine:
    """What limits a forward.

    Attributes:
        name: for the table.
        products: floating-point operations a second of matrix products.
        memory: bytes a second between memory and processor.
        elements: bytes a second that operations on activations read and write: they lie in a cache where they fit it.
        exponentials: a second, of activations and of the softmax over the vocabulary.
        itemsize: bytes of a number.
        devices: that divide the questions among themselves.
        packs: whether a product copies its weights into blocks first, as libraries for CPUs do.
    """

    name: str
    products: float
    memory: float
    elements: float
    exponentials: float
    itemsize: int = 4
    devices: int = 1
    packs: bool = False


#: NVIDIA H200 SXM: 989 TFLOP/s in bfloat16 without sparsity, 4.8 TB/s; special functions: 16 a clock on 132 x 4 units.
H200 = Machine("H200", REACHED * 989e12, REACHED * 4.8e12, REACHED * 4.8e12, 132 * 16 * 1.8e9, itemsize=2)
NODE = replace(H200, name="node of 8 H200", devices=8)


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder with gated MLPs."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """From a config of transformers."""
        text = config.get_text_config()
        return cls(
            *(text.num_hidden_layers, text.hidden_size, text.intermediate_size, text.num_attention_heads),
            *(text.num_key_value_heads, text.head_dim, text.vocab_size),
        )


#: Gemma 3 of three sizes (text models).
SHAPES = {
    "270M": Shape(18, 640, 2048, 4, 1, 256, 262_144),
    "4B": Shape(34, 2560, 10_240, 8, 4, 256, 262_144),
    "12B": Shape(48, 3840, 15_360, 16, 8, 256, 262_144),
}


@dataclass(frozen=True)
class Forward:
    """One forward: tokens that are run, columns of their attention, scored positions, and calls of the head for these."""

    tokens: int
    context: float
    scored: int
    calls: int = 1


def product(machine: Machine, rows: float, inputs: int, outputs: int) -> float:
    """Seconds of [rows, inputs] times [inputs, outputs]."""
    moved = machine.itemsize * (rows * inputs + inputs * outputs + rows * outputs)
    packing = 2 * machine.itemsize * inputs * outputs / machine.memory if machine.packs else 0.0
    return packing + max(2 * rows * inputs * outputs / machine.products, moved / machine.memory)


def seconds(machine: Machine, shape: Shape, forward: Forward) -> float:
    """Of one forward on one device."""
    t, hidden = forward.tokens, shape.hidden
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = product(machine, t, hidden, queries) + 2 * product(machine, t, hidden, keys)
    layer += product(machine, t, queries, hidden)
    layer += 2 * product(machine, t, hidden, shape.inner) + product(machine, t, shape.inner, hidden)
    layer += 2 * 2 * t * forward.context * queries / machine.products  # scores, and their weighted values
    # Passes over activations in eager mode: norms (in float32: square, mean, scale, weight), residual sums, the rotation
    # of queries and keys, the gate.
    norms = 4 * hidden + queries + keys
    passes = 8 * norms + 2 * 3 * hidden + 7 * (queries + keys) + 3 * shape.inner
    layer += machine.itemsize * t * passes / machine.elements
    layer += t * (shape.inner + forward.context * shape.heads) / machine.exponentials
    head = 0.0
    if forward.scored:  # each call reads the weights of the head
        head = forward.calls * product(machine, forward.scored / forward.calls, hidden, shape.vocabulary)
    head += forward.scored * shape.vocabulary / machine.exponentials
    return shape.layers * layer + head


def operations(shape: Shape, forward: Forward) -> float:
    """Floating-point operations of the products of one forward."""
    body = shape.hidden * (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim + 3 * shape.hidden * shape.inner
    return 2.0 * (shape.layers * body * forward.tokens + shape.hidden * shape.vocabulary * forward.scored)


def measured_machine(dtype: str = "float32") -> Machine:
    """This machine's four numbers for one thread, or as many as torch uses; seconds of the processor, so that others on the
    machine disturb little."""
    import torch

    from lm_eval_ext.scoring.products import fast_products

    kind = getattr(torch, dtype)
    a, b = torch.randn(1024, 640, dtype=kind), torch.randn(2048, 640, dtype=kind)
    small, large = torch.randn(1024, 640, dtype=kind), torch.randn(2**24, dtype=kind)
    target, vocabulary = torch.empty_like(large), torch.randn(4, 262_144)
    with torch.inference_mode(), fast_products(b):
        products = 2 * a.shape[0] * b.shape[0] * b.shape[1] / _best(lambda: torch.nn.functional.linear(a, b))
        memory = 2 * large.numel() * large.element_size() / _best(lambda: target.copy_(large))
        elements = 3 * small.numel() * small.element_size() / _best(lambda: small * small)
        exponentials = vocabulary.numel() / _best(lambda: vocabulary.exp())
    return Machine("this machine", products, memory, elements, exponentials, itemsize=kind.itemsize, packs=True)


def _best(work: Callable[[], Any], repeats: int = 5) -> float:
    """The least seconds of the processor, per thread, of some runs."""
    import torch

    found = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        found.append((time.process_time() - started) / torch.get_num_threads())
    return min(found[1:])


# The cases -------------------------------------------------------------------------------------------------------------


def counted(model: Any, work: Callable[[], object]) -> list[Forward]:
    """The forwards that some work runs: tokens with their padding, and rows of each call of the LM head."""
    from lm_eval_ext.scoring.tree_attention import TreeModel

    found: list[tuple[int, int, list[int]]] = []

    def embedded(module: Any, inputs: Any, output: Any) -> None:
        rows, width = inputs[0].shape
        found.append((rows * width, width, []))

    def scored(module: Any, inputs: Any, output: Any) -> None:
        found[-1][2].append(output.numel() // output.shape[-1])

    def in_slices(self: TreeModel, hidden: Any, n_positions: int) -> Any:
        found[-1][2].append(len(hidden))
        return logits(self, hidden, n_positions)

    logits = TreeModel._logits
    hooks = [
        model.get_input_embeddings().register_forward_hook(embedded),
        model.get_output_embeddings().register_forward_hook(scored),
    ]
    try:
        with mock.patch.object(TreeModel, "_logits", in_slices):
            work()
    finally:
        for hook in hooks:
            hook.remove()
    return [Forward(tokens, width, sum(heads), max(1, len(heads))) for tokens, width, heads in found]


def rows(args: argparse.Namespace | None = None) -> Iterator[Row]:
    """Predicted over measured time of scoring on this machine, and what other machines should reach."""
    args = args or parser().parse_args([])
    if not args.expect:
        yield from _compared(args)
    yield from _expected()


def _compared(args: argparse.Namespace) -> Iterator[Row]:
    import scoring

    for case, n in (("letters", args.questions), ("cloze", max(1, args.questions // 2))):
        measured = _scored(case, n)
        predicted = sum(seconds(measured["machine"], measured["shape"], one) for one in measured["forwards"])
        share = predicted / measured["seconds"]
        machine: Machine = measured["machine"]
        yield Row(
            f"roofline: {scoring.CASES[case][1]}, {n} questions, float32: predicted / measured",
            f"{1 - TOLERANCE:.2f} to {1 + TOLERANCE:.2f}",
            f"{share:.2f}",
            f"{predicted:.2f} of {measured['seconds']:.2f} s of the processor; products "
            f"{machine.products / 1e9:.0f} GFLOP/s, memory {machine.memory / 1e9:.1f} GB/s, "
            f"elements {machine.elements / 1e9:.1f} GB/s, "
            f"{machine.exponentials / 1e6:.0f} million exponentials a second",
            abs(share - 1) <= TOLERANCE,
        )


def _scored(case: str, n: int) -> dict[str, Any]:
    """Seconds of the processor of scoring questions with the embedded model, the machine measured right before."""
    import scoring
    import torch

    arguments = scoring.parser().parse_args(["--dtype", "float32"])
    model = scoring.load("steered-hf", arguments)
    asked = scoring.instances(scoring.pairs(case)[1][:n])
    scoring.warm_up(model, asked)

    def work() -> None:
        model.loglikelihood(asked, disable_tqdm=True)

    forwards = counted(model.model, work)
    machine = measured_machine()
    started = time.process_time()
    work()
    taken = (time.process_time() - started) / torch.get_num_threads()
    return {"seconds": taken, "machine": machine, "forwards": forwards, "shape": Shape.of(model.model.config)}


def _expected() -> Iterator[Row]:
    """Questions a second of Global-MMLU in letters, and of option texts, on machines that are not at hand."""
    prompt, options, fed = 160, 4, 10  # tokens of a prompt; options; tokens fed of all option texts of a prompt
    cases = {
        "letters": (16384 // prompt, Forward(16384, prompt / 2, 16384 // prompt)),
        "option texts": (16384 // (prompt + fed), Forward(16384, prompt / 2, 16384 // (prompt + fed) * (1 + fed))),
    }
    for machine in (H200, NODE):
        for name, shape in SHAPES.items():
            for case, (n, forward) in cases.items():
                taken = seconds(machine, shape, forward)
                share = operations(shape, forward) / taken / (machine.products / REACHED)
                yield Row(
                    f"predicted: {machine.name}, Gemma 3 {name}, {case}, bfloat16",
                    "-",
                    f"{machine.devices * n / taken:,.0f} questions/s",
                    f"prompts of {prompt} tokens, {options} options; {share:.0%} of the peak; a prediction, not measured",
                )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--questions", type=int, default=40, help="of each compared case; half of them with option texts")
    made.add_argument("--expect", action="store_true", help="only the predictions for other machines")
    return made


def main() -> None:
    import run

    run.show(list(rows(parser().parse_args())))


if __name__ == "__main__":
    main()
