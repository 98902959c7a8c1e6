"""The command `lm-eval-ext side-effects`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm_eval_ext.errors import UserError
from lm_eval_ext.languages import LANGUAGES

if TYPE_CHECKING:
    from lm_eval_ext.steering.vectors import VectorSet

_MODEL, _TEXTS, _TASKS, _OUTPUT = "Model", "Texts", "Tasks", "Outputs"
#: Of --model_args, what is understood here.
_ARGUMENTS = ("pretrained", "dtype", "device", "revision", "peft", "trust_remote_code")


def side_effects(
    model_args: Annotated[
        str,
        typer.Option(
            "--model_args",
            "--model-args",
            help=f"Of {', '.join(_ARGUMENTS)}, as KEY=VALUE,...; the embedded model by default.",
            rich_help_panel=_MODEL,
        ),
    ] = "",
    baseline_args: Annotated[
        str,
        typer.Option(
            "--baseline_args",
            "--baseline-args",
            help="The same, of another model that the first one is held against; by default itself without the plan.",
            rich_help_panel=_MODEL,
        ),
    ] = "",
    vectors: Annotated[Path | None, typer.Option(help="Vector file.", rich_help_panel=_MODEL)] = None,
    steer: Annotated[str, typer.Option(help="Plan, or the plan.yaml of a sweep.", rich_help_panel=_MODEL)] = "",
    positions: Annotated[
        str, typer.Option(help="Tokens to steer where the plan does not say.", rich_help_panel=_MODEL)
    ] = "prompt",
    texts: Annotated[
        str,
        typer.Option(
            help="Parallel sentences: mini, flores, ntrex, gmmlu or FILE.tsv (language, positive, negative).",
            rich_help_panel=_TEXTS,
        ),
    ] = "mini",
    languages: Annotated[
        str, typer.Option(help="Language codes, joined by commas; English is always measured.", rich_help_panel=_TEXTS)
    ] = ",".join(LANGUAGES),
    max_texts: Annotated[int, typer.Option(min=5, help="Most texts in each language.", rich_help_panel=_TEXTS)] = 50,
    prompts: Annotated[
        str,
        typer.Option(
            help="What is continued: texts (the first half of each), mini (the instructions in the package), or "
            "FILE.jsonl of instructions.",
            rich_help_panel=_TEXTS,
        ),
    ] = "texts",
    new_tokens: Annotated[
        int, typer.Option(min=0, help="Most tokens of a generation; 0 for none.", rich_help_panel=_TEXTS)
    ] = 48,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward.", rich_help_panel=_TEXTS)] = 4,
    tasks: Annotated[
        str,
        typer.Option(
            help="Tasks of the harness that must not change, joined by commas: their accuracy too.",
            rich_help_panel=_TASKS,
        ),
    ] = "",
    metric: Annotated[str, typer.Option(help="Of these tasks, per document.", rich_help_panel=_TASKS)] = "acc",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most documents of each task.", rich_help_panel=_TASKS)
    ] = None,
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="Level of the intervals.")] = 0.95,
    json: Annotated[
        Path | None, typer.Option(help="Write everything, for `side_effects` of a gate.", rich_help_panel=_OUTPUT)
    ] = None,
    svg: Annotated[Path | None, typer.Option(help="Write the table as a picture.", rich_help_panel=_OUTPUT)] = None,
) -> None:
    """Measure what a plan, or a model against its baseline, changes besides its aim.

    On parallel texts: perplexity, KL divergence of the next token's
    distribution to the baseline, how often the most likely token is the same.
    On generations: language (py3langid, on this machine), English where it
    was not asked for, length, repetition. On unrelated tasks: accuracy. All
    in pairs with the baseline, with intervals over texts. Exit status: 0, or
    2 where nothing can be measured; limits are the gate's (`side_effects`).

    Examples:

      lm-eval-ext side-effects --vectors v.safetensors --steer en@42%:2+loc@58%:2

      lm-eval-ext side-effects --model_args pretrained=google/gemma-3-12b-pt,peft=runs/mist \\
        --baseline_args pretrained=google/gemma-3-12b-pt --texts flores --json side_effects.json
    """
    import pandas as pd

    from lm_eval_ext.console import Progress, output, picture
    from lm_eval_ext.data.parallel import sentences
    from lm_eval_ext.io import write_file
    from lm_eval_ext.languages import normalise
    from lm_eval_ext.models.loading import load_model
    from lm_eval_ext.side_effects import table
    from lm_eval_ext.side_effects.measuring import measure
    from lm_eval_ext.side_effects.panel import Panel, accuracy
    from lm_eval_ext.side_effects.prompts import load_prompts
    from lm_eval_ext.steering.decoder import layer_count
    from lm_eval_ext.steering.plan import Plan, parse_position
    from lm_eval_ext.steering.table import SteeringTable
    from lm_eval_ext.steering.vectors import VectorSet

    codes = list(dict.fromkeys(normalise(code) for code in languages.split(",") if code.strip()))
    plan = Plan.read(steer or None)
    vector_set = None if vectors is None else VectorSet.load(vectors)
    if not plan and not baseline_args:
        raise UserError("nothing is measured against itself: give a plan (--vectors, --steer), or --baseline_args")
    arguments, other = _arguments("model_args", model_args), _arguments("baseline_args", baseline_args)
    parallel = sentences(texts, codes, max_texts)
    by_language = parallel.by_id()
    model, tokenizer = load_model(**arguments)
    name = _name(arguments)
    if vector_set is not None:
        vector_set.check_model(name, model.config)
    resolved = SteeringTable.build(plan, vector_set, layer_count(model.config), parse_position(positions))
    baseline = load_model(**other)[0] if baseline_args else None
    continued = load_prompts(prompts, by_language, codes, tokenizer) if new_tokens else {}
    total = sum(len(of_language) for group in (by_language, continued) for of_language in group.values())
    with Progress(total, "Measuring", "text") as bar:
        frame = measure(
            *(model, tokenizer, resolved, by_language),
            prompts=continued,
            baseline=baseline,
            new_tokens=new_tokens,
            batch_size=batch_size,
            progress=bar.update,
        )
    if names := [task.strip() for task in tasks.split(",") if task.strip()]:
        before = _evaluated(names, baseline or model, tokenizer, None, "", limit)
        after = _evaluated(names, model, tokenizer, vector_set, str(plan), limit)
        frame = pd.concat([frame, accuracy(before, after, metric)], ignore_index=True)
    panel = Panel(
        frame,
        model=name,
        plan=str(plan),
        baseline=_name(other) if baseline_args else f"{name}, unsteered",
        settings={"texts": parallel.name, "prompts": prompts, "new_tokens": new_tokens, "positions": positions},
    )
    shown = table.table(panel, level)
    output(150).print(shown)
    if json is not None:
        panel.write(json)
    if svg is not None:
        write_file(svg, picture([shown], "lm-eval-ext side-effects"))


def _arguments(option: str, text: str) -> dict[str, Any]:
    """The arguments of `load_model`; the embedded model where none is named."""
    from lm_eval.utils import simple_parse_args_string

    from lm_eval_ext.models import embedded

    given: dict[str, Any] = simple_parse_args_string(text) if text else {}
    if unknown := [key for key in given if key not in _ARGUMENTS]:
        raise UserError(f"--{option}: unknown {', '.join(unknown)}; valid: {', '.join(_ARGUMENTS)}")
    name = given.pop("pretrained", None)
    return {"name": str(embedded.path() if name is None else name), **given}


def _name(arguments: dict[str, Any]) -> str:
    from lm_eval_ext.models import embedded
    from lm_eval_ext.results.run import short_model

    is_embedded = arguments["name"] == str(embedded.path())
    return embedded.NAME if is_embedded else short_model(arguments["name"])


def _evaluated(
    tasks: list[str], model: Any, tokenizer: Any, vectors: VectorSet | None, plan: str, limit: int | None
) -> dict[str, Any]:
    from lm_eval_ext.evaluation import evaluate

    options: dict[str, Any] = {"limit": limit, "log_samples": True, "bootstrap_iters": 0}
    options["model_args"] = {"tokenizer": tokenizer}
    return evaluate("steered-hf", tasks=tasks, pretrained=model, vectors=vectors, plan=plan, **options)
