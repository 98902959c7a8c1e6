"""The command `lm-eval-ext tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lm_eval_ext.commands import options
from lm_eval_ext.errors import UserError
from lm_eval_ext.languages import LANGUAGES, normalise

_TRIED, _RULE, _TASKS, _MODEL = "What is tried", "The choice", "Questions", "Model"


def tune(
    out: Annotated[
        Path, typer.Option(help="Folder for the results, and for what is computed (an interrupted run resumes).")
    ],
    dev: Annotated[
        str,
        typer.Option("--dev", help="Tasks or groups of development splits, joined by commas.", rich_help_panel=_TASKS),
    ] = "blend_decon_dev_cloze,bmlama_dev",
    test: Annotated[
        str,
        typer.Option("--test", help="Tasks or groups on which the plan is confirmed, once.", rich_help_panel=_TASKS),
    ] = "",
    named: Annotated[
        str,
        typer.Option(
            "--named", help="The test questions with the country named: the upper bound.", rich_help_panel=_TASKS
        ),
    ] = "",
    pairs: Annotated[
        list[str] | None,
        typer.Option(help="KIND=SOURCE as for extract; repeatable, also for one kind.", rich_help_panel=_TRIED),
    ] = None,
    estimator: Annotated[
        list[str] | None,
        typer.Option(help="[KIND=]NAME[:field=value,...]; repeatable.", rich_help_panel=_TRIED),
    ] = None,
    vectors: Annotated[
        list[Path] | None,
        typer.Option(help="Vector file whose kinds are tried too; repeatable.", rich_help_panel=_TRIED),
    ] = None,
    pooling: Annotated[
        str,
        typer.Option(
            help="Tokens that vectors are read from: last,mean,...; by default the kind's.", rich_help_panel=_TRIED
        ),
    ] = "",
    max_pairs: Annotated[
        int | None, typer.Option(min=1, help="Pairs of each language.", rich_help_panel=_TRIED)
    ] = None,
    layers: Annotated[str, typer.Option(help="'all', or layers as in a plan.", rich_help_panel=_TRIED)] = "20%-80%",
    gammas: Annotated[str, typer.Option(help="Strengths: 1,2,4 or 5%,10%.", rich_help_panel=_TRIED)] = "1,2,4",
    positions: Annotated[
        str, typer.Option(help="Tokens to steer, as in a plan.", rich_help_panel=_TRIED)
    ] = "prompt,last",
    weight: Annotated[
        float, typer.Option(min=0, max=1, help="Of localization; the rest is that of transfer.", rich_help_panel=_RULE)
    ] = 0.5,
    max_loss: Annotated[
        float, typer.Option(min=0, help="Points of transfer that a plan may lose.", rich_help_panel=_RULE)
    ] = 1.0,
    metric: Annotated[
        str, typer.Option(help="probability (of the right option) or acc, for the choice.", rich_help_panel=_RULE)
    ] = "probability",
    cells: Annotated[
        int, typer.Option(min=1, help="Prompts under plans that the choice may compute.", rich_help_panel=_RULE)
    ] = 20_000,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="Instead of --cells; the same budget gives the same plan.", rich_help_panel=_RULE),
    ] = None,
    reduction: Annotated[
        int,
        typer.Option(min=2, help="The best 1/N of each rung go on, with N times the questions.", rich_help_panel=_RULE),
    ] = 3,
    finalists: Annotated[
        int, typer.Option(min=1, help="Plans of each kind that are combined.", rich_help_panel=_RULE)
    ] = 6,
    random: Annotated[
        int, typer.Option(min=0, help="Random directions beside the chosen plan.", rich_help_panel=_RULE)
    ] = 19,
    shuffled: Annotated[int, typer.Option(min=0, help="Fits of shuffled pairs beside it.", rich_help_panel=_RULE)] = 5,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Compare estimators: each gets an equal share of the cells, and its best plan is confirmed too "
            "(compared.csv).",
            rich_help_panel=_RULE,
        ),
    ] = False,
    side_effects: Annotated[
        str,
        typer.Option(
            help="Measure side effects of the chosen plan on parallel texts: mini, flores, ntrex, gmmlu or a TSV file.",
            rich_help_panel=_RULE,
        ),
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of the order of questions.", rich_help_panel=_RULE)] = 0,
    languages: Annotated[
        str, typer.Option(help="Languages of pairs and questions.", rich_help_panel=_TASKS)
    ] = ",".join(LANGUAGES),
    limit: options.Limit = None,
    num_fewshot: options.NumFewshot = None,
    apply_chat_template: options.ApplyChatTemplate = False,
    system_instruction: options.SystemInstruction = "",
    include_path: options.IncludePath = None,
    lang: options.Lang = "",
    model: options.Model = "",
    model_args: Annotated[
        str, typer.Option(help="More of lm_eval's --model_args: dtype=float32, ...", rich_help_panel=_MODEL)
    ] = "",
    device: Annotated[
        str, typer.Option(help="cpu, cuda, ...; a GPU if there is one by default.", rich_help_panel=_MODEL)
    ] = "",
    restart: Annotated[bool, typer.Option(help="Discard what earlier runs computed.")] = False,
) -> None:
    """Choose what to steer with: vectors, layers, strengths and tokens, on a development split.

    Plans of one vector are tried on few questions, the best of them on more
    (successive halving); the best of en and of the other kinds are then combined.
    The chosen plan is confirmed once on the test split, with paired intervals,
    random directions of the same norm, fits of shuffled pairs, another
    language's vector, and the share of the gap that it closes. Test splits are
    refused for the choice.

    Writes to --out: plan.yaml and vectors.safetensors (for steered-hf), tune.html,
    tried.csv, confirmation.csv, gap_closed.csv, tune.json.

    Examples:

      lm-eval-ext tune --out tuned/ --pairs en=mini --pairs loc=blend \\
        --estimator mean_difference --estimator loc=lda --languages es,id,el,ko,zh,ar \\
        --test blend_decon_cloze,bmlama --named blend_ctx_cloze

      lm-eval-ext tune --out tuned/ --vectors v.safetensors --minutes 20

      lm_eval --model steered-hf --tasks blend_decon_cloze \\
        --model_args vectors=tuned/vectors.safetensors,steer=tuned/plan.yaml
    """
    from lm_eval_ext.console import output
    from lm_eval_ext.tune.run import Tune
    from lm_eval_ext.tune.settings import Settings

    sources = [_source(text) for text in pairs or []]
    result = Tune(
        Settings(
            out=out,
            dev_tasks=_words(dev),
            test_tasks=_words(test),
            named_tasks=_words(named),
            pairs=tuple(sources),
            estimators=tuple(
                _estimator(text, {kind for kind, _ in sources}) for text in estimator or ["mean_difference"]
            ),
            poolings=_words(pooling),
            max_pairs=max_pairs,
            vectors=tuple(vectors or ()),
            layers=layers,
            gammas=_words(gammas),
            positions=_words(positions),
            languages=tuple(normalise(code) for code in _words(languages)),
            weight=weight,
            max_loss=max_loss / 100,
            metric=metric,
            cells=cells,
            minutes=minutes,
            reduction=reduction,
            finalists=finalists,
            n_random=random,
            n_shuffled=shuffled,
            compare=compare,
            side_effects=side_effects,
            seed=seed,
            limit=limit,
            num_fewshot=num_fewshot,
            apply_chat_template=apply_chat_template,
            system_instruction=system_instruction or None,
            include_path=include_path,
            lang=normalise(lang) if lang else None,
            model=model,
            model_args=model_args,
            device=device,
            restart=restart,
        )
    ).run()
    console = output(160)
    for sentence in result.sentences():
        console.print(f"• {sentence}", soft_wrap=True, markup=False)
    written = f"{'plan.yaml, ' if result.is_improvement else ''}vectors.safetensors, tune.html, tried.csv and tune.json"
    console.print(f"\nwrote {written} to {out}", soft_wrap=True)


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _source(text: str) -> tuple[str, str]:
    kind, equals, source = text.partition("=")
    if not (kind and equals and source):
        raise UserError(f"--pairs {text!r}: expected KIND=SOURCE, such as en=flores or loc=blend")
    return kind, source


def _estimator(text: str, kinds: set[str]) -> tuple[str, str]:
    """The kind, empty for all, and the estimator with its parameters."""
    before, equals, _ = text.partition(":")[0].partition("=")
    if not equals:
        return "", text
    if before not in kinds:
        raise UserError(f"--estimator {text!r}: there are no pairs of kind {before}; add --pairs {before}=SOURCE")
    return before, text.removeprefix(f"{before}=")
