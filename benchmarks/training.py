"""Memory and time of training: CLO against TRL's DPO, and MIDALIGN's step against its two parts.

    python benchmarks/training.py                     # embedded model, CPU
    python benchmarks/training.py --model NAME_OR_FOLDER --batch-size 8 --device cuda

Memory: peak of a process of its own that trains three steps; both train LoRA on the attention projections, take the model
with its adapter disabled as the reference, and put the same sequences through the model in one forward (a tuple of CLO is
two pairs of DPO). Time: medians of training steps in turn, on the same batches, wall clock and processor time; the latter
is what to read on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="name or folder; the embedded model where left out")
    parser.add_argument(
        "--batch-size", type=int, default=4, help="tuples, or instructions and as many pairs (default 4)"
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--runs", type=int, default=5, help="timed steps of each kind (default 5)")
    parser.add_argument("--child", choices=["clo", "dpo", "midalign"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({"clo": clo, "dpo": dpo, "midalign": midalign}[args.child](args, Path(folder))))
        return
    found = {}
    for child in ("dpo", "clo", "midalign"):
        print(f"running {child}", file=sys.stderr)
        command = [sys.executable, __file__, *sys.argv[1:], "--child", child]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[child] = json.loads(output.splitlines()[-1])
    ratio = found["clo"]["mib"] / found["dpo"]["mib"]
    print(f"peak memory, MiB: TRL DPO {found['dpo']['mib']:.0f}, CLO {found['clo']['mib']:.0f}, ratio {ratio:.2f}")
    for clock, seconds in found["midalign"].items():
        parts = seconds["response"] + seconds["contrastive"]
        print(
            f"step, {clock}: response {seconds['response']:.2f} s, contrastive {seconds['contrastive']:.2f} s, "
            f"both {seconds['both']:.2f} s, {seconds['both'] / parts:.2f} of the sum"
        )


def clo(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    from lm_eval_ext.training.methods.clo import CloConfig

    ready = set_up(args, CloConfig, folder, max_steps=STEPS, languages="es,id,zh")
    ready.trainer.train()
    return {"mib": peak(args.device)}


def dpo(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """TRL's own trainer on the same tuples: the two preferences of each, one after the other."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from lm_eval_ext.data import instruct
    from lm_eval_ext.models import embedded
    from lm_eval_ext.models.loading import load_model
    from lm_eval_ext.training.adapter import lora_config
    from lm_eval_ext.training.schedule import order

    tuples, _ = instruct.load_tuples("mini", ["es", "id", "zh"])
    chosen = [tuples[item.row] for item in order(STEPS, args.batch_size, len(tuples)) if item.row is not None]
    pairs = [
        {"prompt": f"User: {x}\nAssistant:", "chosen": f" {best}", "rejected": f" {other}"}
        for row in chosen
        for x, best, other in ((row.x_en, row.y_en, row.y_xx), (row.x_xx, row.y_xx, row.y_en))
    ]
    model, tokenizer = load_model(args.model or str(embedded.path()), dtype=args.dtype, device=args.device)
    config = DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=2 * args.batch_size,
        max_steps=STEPS,
        save_strategy="no",
        report_to="none",
        bf16=args.dtype == "bfloat16",
        use_cpu=args.device == "cpu",
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )
    DPOTrainer(
        model,
        args=config,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=lora_config(model, 16, 32, mlp=False),
    ).train()
    return {"mib": peak(args.device)}


def midalign(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    from lm_eval_ext.training.methods.midalign import MidalignConfig

    ready = set_up(args, MidalignConfig, folder, max_steps=args.runs + 1, mode="sum", pairs="mini")
    trainer: Any = ready.trainer
    trainer.create_optimizer_and_scheduler(args.runs + 1)
    trainer.current_gradient_accumulation_steps = 1
    model, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    clocks = {"wall clock": time.perf_counter, "processor time": time.process_time}
    taken: dict[str, dict[str, list[float]]] = {
        clock: {"response": [], "contrastive": [], "both": []} for clock in clocks
    }
    for step in range(args.runs + 1):
        batch = trainer.method.collate(trainer.items[step * args.batch_size : (step + 1) * args.batch_size])
        parts = {
            "response": {key: value for key, value in batch.items() if not key.startswith("pair")},
            "contrastive": {key: value for key, value in batch.items() if key.startswith("pair")},
            "both": batch,
        }
        for part, inputs in parts.items():
            before = {clock: read() for clock, read in clocks.items()}
            trainer.training_step(model, inputs)
            if args.device == "cuda":
                import torch

                torch.cuda.synchronize()
            for clock, read in clocks.items():
                taken[clock][part].append(read() - before[clock])
            model.zero_grad()
    # The first step of each kind warms up.
    return {
        clock: {part: statistics.median(seconds[1:]) for part, seconds in found.items()}
        for clock, found in taken.items()
    }


def set_up(args: argparse.Namespace, kind: Any, folder: Path, **changes: Any) -> Any:
    """A run of ours that can begin."""
    import contextlib

    from accelerate import PartialState

    from lm_eval_ext.training import run

    given = {"per_device_train_batch_size": args.batch_size, "dtype": args.dtype, "device": args.device}
    config = kind(output_dir=folder / "run", model_name_or_path=args.model, **given, **changes)
    with contextlib.redirect_stdout(sys.stderr):
        return run.set_up(config, PartialState(cpu=args.device == "cpu"))


def peak(device: str) -> float:
    """Peak memory of this process in MiB: on a GPU what torch allocated, else what was resident."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    return kib / 2**20 if sys.platform == "darwin" else kib / 2**10


if __name__ == "__main__":
    main()
