"""The command `lm-eval-ext extract`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lm_eval_ext import __version__
from lm_eval_ext.data import pairs
from lm_eval_ext.errors import LanguageError, UserError
from lm_eval_ext.languages import LANGUAGES, normalise
from lm_eval_ext.steering.plan import is_kind

if TYPE_CHECKING:
    from lm_eval_ext.steering.extraction import Pooling

#: How each kind is extracted unless told otherwise (our defaults; the paper does not say). A sentence's language is in all
#: of its tokens; whether a question names a country is read off the token that the answer follows.
DEFAULT_POOLING: dict[str, Pooling] = {"en": "mean", "loc": "last"}
DEFAULT_PAIRS = {"en": "mini", "loc": "mini"}


def extract(
    out: Annotated[Path, typer.Option(help="Vector file to write (safetensors).")],
    model: Annotated[str, typer.Option(help="Model name or folder; the embedded model where left out.")] = "",
    kinds: Annotated[str, typer.Option(help="Kinds to extract, joined by commas.")] = "en,loc",
    pair_sources: Annotated[
        list[str] | None,
        typer.Option(
            "--pairs", help="KIND=SOURCE; repeatable. en: mini, flores, ntrex, gmmlu; loc: mini, blend; any: FILE.tsv."
        ),
    ] = None,
    languages: Annotated[
        str, typer.Option(help="Language codes, joined by commas; gmmlu pairs exist in 42 languages.")
    ] = ",".join(LANGUAGES),
    layers: Annotated[str, typer.Option(help="'all', or layers as in a plan, joined by commas: 5,8-10,42%.")] = "all",
    position: Annotated[
        str, typer.Option(help="last or mean, for all kinds. Default: mean for en, last for every other kind.")
    ] = "",
    max_pairs: Annotated[int | None, typer.Option(min=1, help="Use the first so many pairs of each language.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward.")] = 16,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float32 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; a GPU if there is one where left out.")] = "",
    revision: Annotated[str, typer.Option(help="Revision of the model on the hub.")] = "main",
    peft: Annotated[str, typer.Option(help="PEFT adapter to load on top.")] = "",
    trust_remote_code: Annotated[bool, typer.Option(help="Run the model repository's own code.")] = False,
) -> None:
    """Extract steering vectors: the mean difference of hidden states over contrastive pairs.

    Kind `en`: English sentences against the other languages' own. Kind `loc`: a question with its country named against the
    same without. Any other kind: your own pairs from a TSV file with the columns language, positive, negative.

    Examples:

      lm-eval-ext extract --out v.safetensors

      lm-eval-ext extract --model google/gemma-3-12b-it --pairs en=flores --pairs loc=blend --out v.safetensors

      lm-eval-ext extract --kinds formal --pairs formal=pairs.tsv --out formal.safetensors
    """
    from tqdm import tqdm

    from lm_eval_ext.models import embedded
    from lm_eval_ext.models.loading import load_config, load_model
    from lm_eval_ext.steering import extraction
    from lm_eval_ext.steering.decoder import layer_count
    from lm_eval_ext.steering.vectors import ModelIdentity, VectorSet

    if position and position not in extraction.POOLINGS:
        raise UserError(f"--position {position!r} is unknown, valid: {', '.join(extraction.POOLINGS)}")
    source_of = _sources(kinds.split(","), pair_sources or [])
    chosen = _languages(languages)
    pair_sets = [
        pair_set for kind, source in source_of.items() for pair_set in pairs.load(kind, source, chosen, max_pairs)
    ]
    _check_writable(out)
    name = model or str(embedded.path())
    config = load_config(name, revision=revision, trust_remote_code=trust_remote_code)
    wanted = extraction.parse_layers(layers, layer_count(config))
    loaded, tokenizer = load_model(
        name, dtype=dtype, device=device, revision=revision, peft=peft, trust_remote_code=trust_remote_code
    )
    entries = {}
    with tqdm(total=2 * sum(len(s.pairs) for s in pair_sets), desc="Extracting", unit="text") as bar:
        for pair_set in pair_sets:
            bar.set_postfix_str(f"{pair_set.kind}/{pair_set.language}")
            entries[pair_set.kind, pair_set.language] = extraction.extract(
                loaded,
                tokenizer,
                pair_set,
                wanted,
                _pooling(pair_set.kind, position),
                batch_size=batch_size,
                progress=bar.update,
            )
    identity = ModelIdentity.of(model or embedded.NAME, config)
    VectorSet(identity, entries, created_by=f"lm_eval_ext {__version__}").save(out)
    typer.echo(f"{out}: {len(entries)} sets of vectors, {len(wanted)} layers, model {identity.name}")


def _pooling(kind: str, given: str) -> Pooling:
    if given:
        return "mean" if given == "mean" else "last"
    return DEFAULT_POOLING.get(kind, "last")


def _languages(text: str) -> list[str]:
    codes = list(dict.fromkeys(normalise(code) for code in text.split(",") if code))
    if not codes:
        raise LanguageError(f"--languages {text!r}: no language; valid: {', '.join(LANGUAGES)}")
    return codes


def _sources(kinds: list[str], given: list[str]) -> dict[str, str]:
    """The pairs of each kind."""
    wrong = [item for item in given if "=" not in item]
    if wrong:
        raise UserError(f"--pairs {wrong[0]!r}: expected KIND=SOURCE, such as en=flores or formal=pairs.tsv")
    named = dict(item.split("=", 1) for item in given)
    if unused := [kind for kind in named if kind not in kinds]:
        raise UserError(
            f"--pairs {unused[0]}={named[unused[0]]}: add {unused[0]} to --kinds, which is {','.join(kinds)}"
        )
    sources = DEFAULT_PAIRS | named
    for kind in kinds:
        if not is_kind(kind):
            raise UserError(f"--kinds {kind!r}: a kind is a word of letters, digits and _, such as en or formal")
        if kind not in sources:
            raise UserError(f"kind {kind!r} has no built-in pairs: add --pairs {kind}=FILE.tsv")
    return {kind: sources[kind] for kind in kinds}


def _check_writable(out: Path) -> None:
    """Find out before the work, not after it."""
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give the path of a file, such as {out / 'vectors.safetensors'}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise UserError(f"--out {out}: cannot write there ({error.strerror}); give another path") from None
