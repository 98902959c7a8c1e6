"""MIDALIGN: the responses' loss, and a contrastive loss of parallel sentences at a middle layer."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm_eval_ext.data.pairs import SOURCES, Pair, PairSet, load_pairs
from lm_eval_ext.data.parallel import refuse_mixing
from lm_eval_ext.errors import TrainingError
from lm_eval_ext.training import schedule
from lm_eval_ext.training.methods.base import Method
from lm_eval_ext.training.methods.mist import MistConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from lm_eval_ext.training.batches import PairBatcher
    from lm_eval_ext.training.encoding import Encoder
    from lm_eval_ext.training.rows import TrainingData
    from lm_eval_ext.training.schedule import BatchItem
    from lm_eval_ext.training.trainer import AlignmentTrainer

MODES = ("alternate", "sum")


@dataclass(frozen=True, kw_only=True)
class MidalignConfig(MistConfig):
    """MIST's loss alternating with (or added to) a contrastive loss on parallel sentences at a middle layer.

    Sentences that are evaluated must not be among them: train on ntrex, evaluate on flores.

    Examples:

      lm-eval-ext train midalign --out runs/midalign --pairs ntrex --layer 50%

      lm-eval-ext train midalign --out runs/midalign --mode sum --temperature 1 --direction forward
    """

    method = "midalign"

    pairs: Annotated[
        str,
        typer.Option(help=f"Parallel sentences: {', '.join(SOURCES['en'])} or FILE.tsv; never what is evaluated."),
    ] = "ntrex"
    max_pairs: Annotated[int, typer.Option(min=0, help="The first so many of each language; 0: all.")] = 0
    layer: Annotated[str, typer.Option(help="Decoder layer, from 0, or depth.")] = "50%"
    temperature: Annotated[float, typer.Option(help="0.1 as in mid-align; 1 is the paper's formula.")] = 0.1
    direction: Annotated[str, typer.Option(help="forward (English asks), backward or both.")] = "both"
    mode: Annotated[str, typer.Option(help="alternate optimiser steps, or sum the losses of each.")] = "alternate"
    contrastive_steps: Annotated[
        int, typer.Option(help="How many of the steps are contrastive; -1: half of them. Alternate mode only.")
    ] = -1
    contrastive_batch_size: Annotated[
        int, typer.Option(min=0, help="Pairs per forward and process, a multiple of --batch-size; 0: as many.")
    ] = 0
    contrastive_weight: Annotated[
        float, typer.Option(help="Factor of the contrastive loss; raise it where that loss does not fall.")
    ] = 1.0
    pool_special: Annotated[
        bool, typer.Option("--pool-special", help="Special tokens count in the mean of a sentence, too.")
    ] = False

    def __post_init__(self) -> None:
        from lm_eval_ext.training.losses import DIRECTIONS  # torch, which `--help` does without

        super().__post_init__()
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise TrainingError(f"--temperature {self.temperature}: must be above 0, such as 0.1")
        if not (self.contrastive_weight >= 0 and math.isfinite(self.contrastive_weight)):
            raise TrainingError(f"--contrastive-weight {self.contrastive_weight}: must be 0 or above")
        for name, value, valid in (("direction", self.direction, DIRECTIONS), ("mode", self.mode, MODES)):
            if value not in valid:
                raise TrainingError(f"--{name} {value!r} is unknown, valid: {', '.join(valid)}")
        if self.mode == "sum" and self.contrastive_steps != -1:
            raise TrainingError("--contrastive-steps: with --mode sum every step has both losses; leave it out")
        if self.contrastive_steps < -1:
            raise TrainingError(f"--contrastive-steps {self.contrastive_steps}: must be 0 or above, or -1 for half")
        if self.max_steps and self.contrastive_steps > self.max_steps:
            raise TrainingError(f"--contrastive-steps {self.contrastive_steps} are more than --steps {self.max_steps}")
        if self.contrastive_batch_size % self.per_device_train_batch_size:
            raise TrainingError(
                f"--contrastive-batch-size {self.contrastive_batch_size}: must be a multiple of --batch-size, which is "
                f"{self.per_device_train_batch_size}"
            )

    @property
    def group_size(self) -> int:
        """Sentence pairs in each item of a contrastive batch."""
        return max(1, self.contrastive_batch_size // self.per_device_train_batch_size)

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Refuse to evaluate on tasks that have the sentences of `pairs`."""
        refuse_mixing(self.pairs, tasks)


class Midalign(Method):
    """MIDALIGN: MIST's loss, and `losses.contrastive_loss` of parallel sentences at a middle layer.

    The paper adds the contrastive term to instruction tuning; the ancestor (mid-align) alternates optimiser steps, our
    default. Sentences are pooled as the mean of the raw residual stream after decoder layer `layer` over all positions that
    are neither padding nor (our default, as in extraction) special tokens; gradients reach both sides, and the forward ends
    at that layer. Negatives come from all processes of a batch.
    """

    config_class = MidalignConfig
    title = "MIDALIGN: MIST's loss, and a contrastive loss on parallel sentences at a middle layer"
    config: MidalignConfig
    sentences: PairBatcher

    def __init__(self, config: MidalignConfig, model_config: Any, processes: int) -> None:
        from lm_eval_ext.steering.decoder import layer_count
        from lm_eval_ext.steering.extraction import parse_layers

        super().__init__(config, model_config, processes)
        layers = parse_layers(config.layer, layer_count(model_config))
        if len(layers) != 1:
            raise TrainingError(
                f"--layer {config.layer!r}: the contrastive loss works at one layer, this names {len(layers)}"
            )
        self.details["layer"] = self.layer = layers[0]
        in_batch = config.per_device_train_batch_size * config.group_size * processes
        if in_batch < 2 and config.contrastive_steps != 0:
            raise TrainingError(
                f"--batch-size {config.per_device_train_batch_size}: the contrastive loss needs at least two pairs in a "
                "batch, or there is nothing to tell a translation from. Give --batch-size 2 or more, or "
                "--contrastive-batch-size"
            )

    def load(self, encoder: Encoder, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> TrainingData:
        """Read the instructions, and the parallel sentences besides."""
        from lm_eval_ext.training import rows
        from lm_eval_ext.training.batches import PairBatcher

        config = self.config
        data = super().load(encoder, tokenizer, max_tokens)
        sets = load_pairs("en", config.pairs, config.codes(), config.max_pairs or None)
        by_language = [(one.language, pair) for one in sets for pair in one.pairs]
        short: list[tuple[str, Pair]] = []
        too_long: Counter[str] = Counter()
        for language, pair in by_language:
            if max(map(len, tokenizer([pair.positive, pair.negative])["input_ids"])) <= max_tokens:
                short.append((language, pair))
            else:
                too_long[language] += 1
        counts = Counter(language for language, _ in short)
        reason = f"longer than {max_tokens} tokens"
        rows.none_empty(config.pairs, [one.language for one in sets], counts, f"{reason}: {dict(too_long)}")
        shuffled = [short[number][1] for number in schedule.shuffle(len(short), (config.seed, 2))]
        self.sentences = PairBatcher(tokenizer, shuffled, config.group_size, special_tokens=config.pool_special)
        sha256 = PairSet("en", "", "", tuple(pair for _, pair in short)).sha256
        record = rows.described(config.pairs, counts, sha256, {reason: too_long} if too_long else {})
        self.data = data.with_more(
            "pairs",
            record,
            f"{config.pairs}: kept: {record['rows']}, left out: {record['left_out'] or 'none'}",
            [text for pair in shuffled for text in (pair.positive, pair.negative)],
        )
        return self.data

    def batch_items(self) -> list[BatchItem]:
        """Instructions and groups of pairs: in alternating steps, or both in each."""
        config = self.config
        summed = config.mode == "sum"
        steps = self.steps_of_rows()
        contrastive = 0
        if not summed:
            half = config.contrastive_steps == -1
            if config.max_steps:
                contrastive = steps // 2 if half else config.contrastive_steps
            else:  # as many steps again as the passes through the instructions take
                contrastive = steps if half else config.contrastive_steps
                steps += contrastive
        self.details["contrastive_steps"] = contrastive
        if (summed or contrastive) and self.sentences.n_groups < self.items_per_step:
            raise TrainingError(
                f"--pairs {config.pairs}: a step takes {self.items_per_step * config.group_size} different pairs, there are "
                "fewer: give more parallel sentences, or lower --batch-size or --contrastive-batch-size"
            )
        return schedule.order(
            steps,
            self.items_per_step,
            len(self.data.examples),
            self.sentences.n_groups,
            contrastive_steps=contrastive,
            summed=summed,
            seed=config.seed,
        )

    def collate(self, items: Sequence[BatchItem]) -> dict[str, Any]:
        """The responses' batch, the sentences', or both."""
        groups = [item.pairs for item in items if item.pairs is not None]
        responses = super().collate(items) if any(item.row is not None for item in items) else {}
        return {**responses, **(self.sentences.batch(groups) if groups else {})}

    def loss(
        self, trainer: AlignmentTrainer, model: nn.Module, inputs: dict[str, Any], n_tokens: Tensor | int | None
    ) -> Tensor:
        """The loss of one batch: of its responses, of its pairs, or of both."""
        if "pairs" not in inputs:
            return super().loss(trainer, model, inputs, n_tokens)
        contrastive = self.contrastive(trainer, inputs)
        trainer.note(contrastive_loss=contrastive)
        if "labels" not in inputs:
            return self.config.contrastive_weight * contrastive
        # The response loss counts the tokens of the whole step; the other is a mean over its batches.
        batches: int = 1 if n_tokens is None else trainer.current_gradient_accumulation_steps
        response = super().loss(trainer, model, inputs, n_tokens)
        return response + self.config.contrastive_weight * contrastive / batches

    def contrastive(self, trainer: AlignmentTrainer, inputs: dict[str, Any]) -> Tensor:
        """The contrastive loss of a batch's pairs against each other and those of the other processes."""
        import torch

        from lm_eval_ext.steering.extraction import Capture
        from lm_eval_ext.training.losses import DIRECTIONS, contrastive_loss

        with Capture(trainer.model, [self.layer]) as capture:
            # Pooled outside of the forward: inside, transformers 4 would have it in a checkpoint that ends early.
            (states,) = capture.run(trainer.model, inputs["pairs"], lambda states: states)
        pooled = (states.float() * inputs["pair_weights"][..., None]).sum(1)
        source, target = (trainer.gather_with_gradient(side) for side in pooled.chunk(2))
        direction = DIRECTIONS[DIRECTIONS.index(self.config.direction)]
        with torch.autocast(pooled.device.type, enabled=False):
            loss = contrastive_loss(source, target, self.config.temperature, direction)
        # Only this process's pairs carry gradients here, which the processes then average.
        return loss + (self.processes - 1) * (loss - loss.detach())

    def after_backward(self, trainer: AlignmentTrainer, inputs: dict[str, Any]) -> None:
        """Average the gradients of a contrastive step over processes."""
        # A forward that ends early never went through the distributed wrapper, which therefore waits for no gradient.
        if "labels" not in inputs:
            trainer.average_gradients()
