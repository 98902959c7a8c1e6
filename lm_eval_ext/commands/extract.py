"""The command `lm-eval-ext extract`."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm_eval_ext.console import Progress
from lm_eval_ext.data import pairs
from lm_eval_ext.data.task_pairs import PREFIX
from lm_eval_ext.errors import LanguageError, UserError
from lm_eval_ext.languages import LANGUAGES, normalise
from lm_eval_ext.steering.plan import is_kind

if TYPE_CHECKING:
    from lm_eval_ext.steering.extraction import KnownStates

_TASKS = "Pairs of tasks"

DEFAULT_PAIRS = {"en": "mini", "loc": "mini"}


def extract(
    out: Annotated[Path, typer.Option(help="Vector file to write (safetensors).")],
    model: Annotated[str, typer.Option(help="Model name or folder; the embedded model by default.")] = "",
    kinds: Annotated[str, typer.Option(help="Kinds to extract, joined by commas.")] = "en,loc",
    pair_sources: Annotated[
        list[str] | None,
        typer.Option(
            "--pairs",
            help="KIND=SOURCE; repeatable. en: mini, flores, ntrex, gmmlu; loc: mini, blend, localization_gap; any: "
            "FILE.tsv, FILE.jsonl, or task:POSITIVE/NEGATIVE, two tasks or groups of the harness.",
        ),
    ] = None,
    languages: Annotated[
        str,
        typer.Option(
            help="Language codes, joined by commas; tr, bn, fr and ru have pairs in ntrex, gmmlu (42 languages) "
            "and localization_gap."
        ),
    ] = ",".join(LANGUAGES),
    layers: Annotated[str, typer.Option(help="'all', or layers as in a plan, joined by commas: 5,8-10,42%.")] = "all",
    estimator: Annotated[
        list[str] | None,
        typer.Option(
            help="[KIND=]NAME[:field=value,...]; repeatable. Names: see below, and what installed packages bring."
        ),
    ] = None,
    pooling: Annotated[
        str,
        typer.Option(
            "--pooling",
            "--position",
            help="Tokens, for all kinds: last, mean, last3, first2, after (the words that differ, and what follows), "
            "generated (the answer's). Default: mean for en, last for every other kind and for tasks.",
        ),
    ] = "",
    num_fewshot: Annotated[
        int | None,
        typer.Option(
            "--num_fewshot", "--num-fewshot", min=0, help="Examples in the prompts of tasks.", rich_help_panel=_TASKS
        ),
    ] = None,
    apply_chat_template: Annotated[
        bool,
        typer.Option(
            "--apply_chat_template",
            "--apply-chat-template",
            help="Prompts of tasks in the model's chat template.",
            rich_help_panel=_TASKS,
        ),
    ] = False,
    system_instruction: Annotated[
        str,
        typer.Option(
            "--system_instruction",
            "--system-instruction",
            help="A text before the prompts of tasks.",
            rich_help_panel=_TASKS,
        ),
    ] = "",
    include_path: Annotated[
        Path | None,
        typer.Option(
            "--include_path", "--include-path", help="Folder with task files of your own.", rich_help_panel=_TASKS
        ),
    ] = None,
    where: Annotated[
        str,
        typer.Option(
            help="'answered': only pairs of tasks whose positive prompt the model answers as the task wants, and whose "
            "negative prompt it does not.",
            rich_help_panel=_TASKS,
        ),
    ] = "",
    unpaired: Annotated[
        bool,
        typer.Option(
            "--unpaired",
            help="With --where: prompts of either kind, not of the same questions.",
            rich_help_panel=_TASKS,
        ),
    ] = False,
    answers: Annotated[
        Path | None,
        typer.Option(
            help="With --where: folder of the harness's results with samples, in place of asking the model.",
            rich_help_panel=_TASKS,
        ),
    ] = None,
    answer_metric: Annotated[
        str,
        typer.Option(help="With --where: the tasks' metric that says what a right answer is.", rich_help_panel=_TASKS),
    ] = "acc",
    min_pairs: Annotated[
        int | None,
        typer.Option(min=1, help="With --where: fewest pairs of a language; 10 if not given.", rich_help_panel=_TASKS),
    ] = None,
    max_pairs: Annotated[int | None, typer.Option(min=1, help="Maximum number of pairs of each language.")] = None,
    shuffled: Annotated[
        int, typer.Option(min=0, help="Controls: fits of the estimator on so many shuffles of the pairs' labels.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward.")] = 16,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float32 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; a GPU if there is one by default.")] = "",
    revision: Annotated[str, typer.Option(help="Revision of the model on the hub.")] = "main",
    peft: Annotated[str, typer.Option(help="PEFT adapter to load on top.")] = "",
    trust_remote_code: Annotated[bool, typer.Option(help="Run the model repository's own code.")] = False,
) -> None:
    """Extract steering vectors from the hidden states of contrastive pairs.

    The estimator is the mean difference of the pairs' hidden states, unless --estimator names another: culture_difference,
    universal_difference (the other languages' mean), pca_difference, logistic_probe, whitened_difference, lda; maps:
    least_squares, affine; with the direction of another one: ablation, complement, rotation, conditional; trained for the
    answers of the pairs: trained, affine.

    Kind `en`: English sentences against the other languages' own. Kind `loc`: a question with its country named against the
    same without. Any other kind: your own pairs from a TSV file with the columns language, positive, negative (and, for
    training, answer), or from JSON lines, one object with language, positive, negative (each a text or a list of texts) per
    line.

    Pairs of two tasks are their prompts as the harness asks them, paired by the documents' ids, the states taken where the
    plan adds. The vector file records what it was made from; steered-hf refuses to evaluate it on that.

    Examples:

      lm-eval-ext extract --out v.safetensors

      lm-eval-ext extract --model google/gemma-3-12b-it --pairs en=flores --pairs loc=blend --out v.safetensors

      lm-eval-ext extract --languages tr,bn,fr,ru,en --pairs en=gmmlu --pairs loc=localization_gap --out gap.safetensors

      lm-eval-ext extract --kinds formal --pairs formal=pairs.tsv --out formal.safetensors

      lm-eval-ext extract --estimator en=least_squares:rank=16 --estimator loc=rotation:direction=lda --out v.safetensors

      lm-eval-ext extract --estimator whitened_difference --shuffled 5 --out v.safetensors

      lm-eval-ext extract --kinds loc --pairs loc=task:blend_ctx_dev/blend_decon_dev --where answered --out v.safetensors
    """
    from lm_eval_ext.backends.answers import MIN_PAIRS, read_answers, score_answers, where_answered
    from lm_eval_ext.models import embedded
    from lm_eval_ext.models.loading import load_config, load_model, load_tokenizer
    from lm_eval_ext.models.speed import forward_seconds
    from lm_eval_ext.steering import registry
    from lm_eval_ext.steering.decoder import layer_count
    from lm_eval_ext.steering.extraction import extract as extract_vectors
    from lm_eval_ext.steering.extraction import parse_layers
    from lm_eval_ext.steering.pooling import parse_pooling

    parsed_pooling = parse_pooling(pooling) if pooling else None
    source_of = _sources(kinds.split(","), pair_sources or [])
    estimators = {
        kind: registry.make_estimator(*registry.parse_estimator(text))
        for kind, text in _estimators(list(source_of), estimator or []).items()
    }
    chosen = _languages(languages)
    asking = [
        *(["--unpaired"] if unpaired else []),
        *(["--answers"] if answers else []),
        *(["--min-pairs"] if min_pairs else []),
    ]
    if where not in ("", "answered") or (asking and not where):
        raise UserError(
            f"--where {where!r} is unknown, valid: answered"
            if where
            else f"{', '.join(asking)}: only with --where answered"
        )
    _check_writable(out)
    name = model or str(embedded.path())
    of_tasks: dict[str, Any] = {
        "num_fewshot": num_fewshot,
        "apply_chat_template": apply_chat_template,
        "system_instruction": system_instruction or None,
    }
    if apply_chat_template:
        of_tasks["tokenizer"] = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    pair_sets = [
        pair_set
        for kind, source in source_of.items()
        for pair_set in pairs.load_pairs(
            *(kind, source, chosen, max_pairs if not where else None),
            include_path=include_path,
            **(of_tasks if source.startswith(PREFIX) or len(source_of) == 1 else {}),
        )
    ]
    config = load_config(name, revision=revision, trust_remote_code=trust_remote_code)
    wanted = parse_layers(layers, layer_count(config))
    loaded, tokenizer = load_model(
        name, dtype=dtype, device=device, revision=revision, peft=peft, trust_remote_code=trust_remote_code
    )
    known: KnownStates = {}
    if where:
        filtered = [pair_set for pair_set in pair_sets if pair_set.pairs[0].asked]
        if not filtered:
            raise UserError("--where answered: none of the pairs are of tasks (--pairs loc=task:POSITIVE/NEGATIVE)")
        if answers is not None:
            given = read_answers(answers, filtered, answer_metric)
        else:
            with Progress(2 * sum(len(s.pairs) for s in filtered), "Asking", "prompt") as bar:
                given, known = score_answers(
                    *(loaded, tokenizer, filtered, wanted, parsed_pooling), metric=answer_metric, progress=bar.update
                )
        kept, counts = where_answered(filtered, given, paired=not unpaired, minimum=min_pairs or MIN_PAIRS)
        for count in counts:
            typer.echo(str(count))
        rest = iter(kept)
        pair_sets = [next(rest) if pair_set.pairs[0].asked else pair_set for pair_set in pair_sets]
        pair_sets = [replace(pair_set, pairs=pair_set.pairs[:max_pairs]) for pair_set in pair_sets]
    texts = [text for each in pair_sets for pair in each.pairs for text in (*pair.positives, *pair.negatives)]
    seconds = forward_seconds(loaded, sum(map(len, tokenizer(texts).input_ids))) if texts and not known else None
    with Progress(len(texts), "Extracting", "text", seconds=seconds) as bar:
        vectors = extract_vectors(
            *(loaded, tokenizer, pair_sets, estimators, wanted),
            pooling=parsed_pooling,
            name=model or embedded.NAME,
            batch_size=batch_size,
            shuffled=shuffled,
            progress=bar.update,
            known=known,
        )
    vectors.save(out)
    typer.echo(f"{out}: {len(vectors.vectors)} sets of vectors, {len(wanted)} layers, model {vectors.model.name}")


def _languages(text: str) -> list[str]:
    codes = list(dict.fromkeys(normalise(code) for code in text.split(",") if code))
    if not codes:
        raise LanguageError(f"--languages {text!r}: no language; valid: {', '.join(LANGUAGES)}")
    return codes


def _estimators(kinds: list[str], options: list[str]) -> dict[str, str]:
    """The estimator of each kind: from an option for the kind, else from one for all kinds."""
    from lm_eval_ext.steering.registry import DEFAULT_ESTIMATOR

    default = dict.fromkeys(kinds, DEFAULT_ESTIMATOR)
    by_kind = {}
    for text in options:
        before, equals, _ = text.partition(":")[0].partition("=")
        if not equals:
            default = dict.fromkeys(kinds, text)
        elif before in kinds:
            by_kind[before] = text.removeprefix(f"{before}=")
        else:
            raise UserError(f"--estimator {text!r}: add {before} to --kinds, which is {','.join(kinds)}")
    return default | by_kind


def _sources(kinds: list[str], options: list[str]) -> dict[str, str]:
    """The source of the pairs of each kind."""
    invalid = [item for item in options if "=" not in item]
    if invalid:
        raise UserError(f"--pairs {invalid[0]!r}: expected KIND=SOURCE, such as en=flores or formal=pairs.tsv")
    by_kind = dict(item.split("=", 1) for item in options)
    if unused := [kind for kind in by_kind if kind not in kinds]:
        raise UserError(
            f"--pairs {unused[0]}={by_kind[unused[0]]}: add {unused[0]} to --kinds, which is {','.join(kinds)}"
        )
    sources = DEFAULT_PAIRS | by_kind
    for kind in kinds:
        if not is_kind(kind):
            raise UserError(f"--kinds {kind!r}: a kind is a word of letters, digits and _, such as en or formal")
        if kind not in sources:
            raise UserError(
                f"kind {kind!r} has no built-in pairs: add --pairs {kind}=FILE.tsv, FILE.jsonl or task:POSITIVE/NEGATIVE"
            )
    return {kind: sources[kind] for kind in kinds}


def _check_writable(out: Path) -> None:
    """Check before the extraction that the file can be written."""
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give the path of a file, such as {out / 'vectors.safetensors'}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise UserError(f"--out {out}: cannot write there ({error.strerror}); give another path") from None
