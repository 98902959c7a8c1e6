"""The command `lm-eval-ext gap`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lm_eval_ext.errors import UserError
from lm_eval_ext.languages import AVERAGE, normalise

_PROMPTS = "Prompts"
DEFAULT_PAIRS = ["blend_decon/blend_ctx", "blend_decon_cloze/blend_ctx_cloze"]


def gap(
    out: Annotated[
        Path, typer.Option(help="Folder for gap.csv, gap.md and what is computed (an interrupted run resumes).")
    ],
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            help="PLAIN/NAMED, two tasks or groups that ask the same questions without and with the country; repeatable. "
            f"Default: {', '.join(DEFAULT_PAIRS)}.",
            show_default=False,
        ),
    ] = None,
    languages: Annotated[str, typer.Option(help="Only questions in these languages, such as es,ko.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Documents of each task.")] = None,
    metric: Annotated[str, typer.Option(help="The score that is compared.")] = "acc",
    num_fewshot: Annotated[
        str, typer.Option(help="Numbers of examples to try, joined by commas.", rich_help_panel=_PROMPTS)
    ] = "0",
    chat_template: Annotated[str, typer.Option(help="off, on, or both.", rich_help_panel=_PROMPTS)] = "off",
    system_instruction: Annotated[
        str, typer.Option(help="A text before every question.", rich_help_panel=_PROMPTS)
    ] = "",
    include_path: Annotated[Path | None, typer.Option(help="Folder with task files of your own.")] = None,
    model: Annotated[str, typer.Option(help="Model name or folder; the embedded model by default.")] = "",
    model_args: Annotated[str, typer.Option(help="More of lm_eval's --model_args: dtype=float32, ...")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; a GPU if there is one by default.")] = "",
) -> None:
    """Find where naming the country makes answers more local: how much steering could bring back.

    Every pair of tasks is asked without and with the country, in every prompt;
    the gap has a paired 95% interval (bootstrap over questions). Steer only
    where there is a gap: elsewhere no result means anything.

    Examples:

      lm-eval-ext gap --out gap/ --languages ko,el --limit 50

      lm-eval-ext gap --out gap/ --model $(lm-eval-ext model --name qwen2.5-coder-0.5b-instruct) \\
        --pairs blend_decon_cloze/blend_ctx_cloze --num-fewshot 0,2 --chat-template both

      lm-eval-ext gap --out gap/ --pairs localization_gap_cloze/localization_gap_ctx_cloze
    """
    from lm_eval_ext.console import notes
    from lm_eval_ext.io import write_file
    from lm_eval_ext.spreadsheets import frame_to_csv
    from lm_eval_ext.sweep.loading import load_backend, rendering
    from lm_eval_ext.tune.gap import Screen, parse_pair, screen, sentences

    shots = [text.strip() for text in num_fewshot.split(",")]
    if not all(text.isdigit() for text in shots):
        raise UserError(f"--num-fewshot {num_fewshot!r}: numbers joined by commas, such as 0,2")
    if chat_template not in ("off", "on", "both"):
        raise UserError(f"--chat-template {chat_template!r} is unknown, valid: off, on, both")
    templates = {"off": [False], "on": [True], "both": [False, True]}[chat_template]
    renderings = [
        rendering(model, apply_chat_template=template, system_instruction=system_instruction or None)
        for template in templates
    ]
    wanted = Screen(
        pairs=tuple(parse_pair(text) for text in pairs or DEFAULT_PAIRS),
        renderings=tuple(
            replace(rendered, num_fewshot=int(number)) for rendered in renderings for number in dict.fromkeys(shots)
        ),
        languages=tuple(normalise(code) for code in languages.split(",") if code),
        limit=limit,
        metric=metric,
        include_path=include_path,
    )
    loaded = load_backend(
        *(model, model_args, device),
        refused=("vectors", "steer"),
        because="--model-args {}: the gap is of the unsteered model",
    )
    gaps = screen(loaded, wanted, out / "cells", notes())
    write_file(out / "gap.csv", frame_to_csv(gaps, "%.5f"))
    table = [
        "| tasks | prompt | language | n | without | named | gap, points |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row['task']}/{row['named_task']} | {row['prompt']} | {row['language']} | {row['n']} | "
            f"{100 * row['score']:.1f} | {100 * row['named']:.1f} | {100 * row['gap']:+.1f} "
            f"[{100 * row['low']:+.1f}, {100 * row['high']:+.1f}] |"
            for row in gaps.to_dict("records")
        ),
    ]
    lines = sentences(gaps[gaps["language"] != AVERAGE])
    write_file(out / "gap.md", "\n".join([*table, "", *lines]) + "\n")
    for line in [*table, "", *lines]:
        typer.echo(line)
    typer.echo(f"\nwrote gap.csv and gap.md to {out}")
