"""Every causal-LM type of the installed transformers, tiny and random, held against plain forwards of one sequence each.

    python benchmarks/architectures.py                                  # all, about a quarter of an hour
    python benchmarks/architectures.py --only gemma4_text llama         # some
    python benchmarks/architectures.py --out results/architectures      # goes on where it stopped; table.md, table.json

Columns, each the largest difference in nats (or `ok`, or the number of texts that differ):

- scores: letters, option texts, 2-shot, prompts across windows, over-long prompts; batches of 1 and 7, automatic,
  padded left
- hf: the harness's own model in batches of 7, which no one promises to be independent of the batch
- rolling, generated: against `hf`
- steered: log-likelihoods at three positions, two languages in a batch, against plain hooks on one sequence at a time
- steered texts: generation in a padded batch, against plain hooks in the same batch
- states: extraction against `output_hidden_states`
- LoRA: scores under an adapter
- sweep: cells of a sweep at two positions and two layers, against plain hooks

A difference in float32 that all but goes in float64 is rounding, or a router or an indexer that chooses otherwise by it. In
another dtype a difference is rounding up to twice what the plain forwards themselves change by where the last bits of
embeddings and of the layers' outputs change (column `noise`).

A worker process takes the types in turn; one that dies or hangs is replaced and its type noted.
"""

from __future__ import annotations

import argparse
import json
import math
import queue
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).parents[1]

#: Seconds for one type.
TIMEOUT = 120.0

#: Seconds until a worker has imported what it needs.
START = 900.0

#: Largest difference in float32 that is called equal.
EQUAL = 1e-4

CONTEXT = 128
LAYER = 1
MARK = "result: "

#: Types whose `hidden_states` begin with the output of the first block, not with the embeddings.
WITHOUT_EMBEDDINGS = ("mamba", "mamba2", "falcon_mamba", "rwkv")

#: Steered positions of scores and texts; languages of the texts.
POSITIONS, LANGUAGES = ("prompt", "last", "all"), ["en", "ko", "ko", "en"]

#: A difference in half precision of up to this many times the measured noise is rounding, as in the probe.
NOISE_FACTOR = 2.0

#: A difference that is at least this many times smaller in float64 is rounding. Not the 5e8 of the two dtypes: parts of some
#: models compute in float32 whatever the dtype is (Qwen3-Next's delta rule).
FLOAT64_FACTOR = 30.0

COLUMNS = ("scores", "hf", "rolling", "generated", "steered", "steered texts", "states", "LoRA", "sweep")


# The table -------------------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure what is not measured yet, and print the table."""
    args = parser().parse_args()
    if args.worker:
        worker(args)
        return
    import tiny_architectures

    cases = args.only or tiny_architectures.cases()
    out = args.out or Path("architectures")
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"cases-{args.dtype}.jsonl"
    results: dict[str, Any] = {}
    if file.is_file() and not args.restart:
        results = {row["case"]: row for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
    process = Worker(args.dtype)
    try:
        for case in cases:
            if case in results and not args.only:
                continue
            results[case] = process.measure(case, args.timeout)
            print(line(results[case]), flush=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in results.values()), encoding="utf-8")
    finally:
        process.close()
    (out / f"table-{args.dtype}.md").write_text(
        table([results[case] for case in sorted(results)], args.dtype), encoding="utf-8"
    )
    print(table([results[case] for case in cases if case in results], args.dtype))


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--only", nargs="+", help="types or variants of tiny_architectures.py, measured anew")
    options.add_argument("--out", type=Path, help="folder of the results (default: architectures/)")
    options.add_argument("--dtype", default="float32", choices=("float32", "float64", "bfloat16"))
    options.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds for one type")
    options.add_argument("--restart", action="store_true", help="measure again what is there")
    options.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return options


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    exact, noise = row.get("float64", {}), row.get("noise")
    cells = [
        shown(row.get(column)) + (f" (float64: {shown(exact[column], 0)})" if column in exact else "")
        for column in COLUMNS
    ]
    noises = [] if noise is None else [f"{noise:.1e}"]
    return " | ".join([f"| {row['case']}", row.get("sharing", "-"), *noises, *cells, f"{row.get('note', '')} |"])


def shown(value: Any, equal: float = EQUAL) -> str:
    """A cell."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return "ok" if value <= equal else "nan" if math.isnan(value) else f"{value:.1e}"


def table(rows: Sequence[dict[str, Any]], dtype: str) -> str:
    """All rows as Markdown, with counts."""
    from importlib.metadata import version

    counts = {kind: [row["case"] for row in rows if outcome(row) == kind] for kind in OUTCOMES}
    noise = ["noise"] if any("noise" in row for row in rows) else []
    names = ["case", "shares", *noise, *COLUMNS, "note"]
    lines = [f"transformers {version('transformers')}, {dtype}: {len(rows)} cases.", ""]
    for kind, meaning in OUTCOMES.items():
        cases = "" if kind == "equal" or not counts[kind] else f": {', '.join(counts[kind])}"
        lines.append(f"- {len(counts[kind])} {kind} ({meaning}){cases}")
    lines += ["", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}", *map(line, rows)]
    return "\n".join(lines) + "\n"


#: What a row of the table says in all.
OUTCOMES = {
    "equal": f"no difference above {EQUAL:g}, or in half precision above rounding",
    "explained": f"a difference in float32 that is below {EQUAL:g} and {FLOAT64_FACTOR:g} times smaller in float64",
    "partly refused": "equal, and an error of ours says why it is not steered, extracted from or adapted",
    "refused": "an error says why it is not evaluated, by transformers, the harness or us",
    "wrong": "an unexplained difference, or a failure",
    "not measured": "the time was up",
}


def outcome(row: dict[str, Any]) -> str:
    """One of `OUTCOMES`."""
    if "sharing" not in row:
        return "refused" if row["note"].startswith(("refused", "no tiny model")) else "not measured"
    if any(is_wrong(row, column) for column in COLUMNS):
        return "wrong"
    if any(row.get(column) == "refused" for column in COLUMNS):
        return "partly refused"
    return "explained" if row.get("float64") else "equal"


def is_wrong(row: dict[str, Any], column: str) -> bool:
    """Whether a cell is a difference that this package answers for (`hf` is the harness) and that is not rounding."""
    value = row.get(column)
    if value is None or column == "hf" or value in ("ok", "refused"):
        return False
    exact = row.get("float64", {}).get(column)
    if isinstance(value, str):
        return exact != "ok" and column not in row.get("rounded", ())
    if value <= max(EQUAL, NOISE_FACTOR * row.get("noise", 0.0)):
        return False
    return not (isinstance(exact, float) and exact <= min(EQUAL, value / FLOAT64_FACTOR))


class Worker:
    """A process that measures one type after the other, replaced where it dies or hangs."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()

    def measure(self, case: str, timeout: float) -> dict[str, Any]:
        """The row of a case."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(case + "\n")
        self._process.stdin.flush()
        try:
            found = self._lines.get(timeout=timeout)
        except queue.Empty:
            self.close()
            return {"case": case, "note": f"not measured: no result within {timeout:g} s"}
        if found is None:
            status = self._process.wait()
            self._process = None
            return {"case": case, "note": f"not measured: the process ended with status {status}"}
        row: dict[str, Any] = json.loads(found)
        return row

    def _start(self) -> None:
        command = [sys.executable, __file__, "--worker", "--dtype", self._dtype]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        lines: queue.Queue[str | None] = queue.Queue()
        self._lines = lines

        def read(stream: Any) -> None:
            for text in stream:
                if text.startswith(MARK):
                    lines.put(text.removeprefix(MARK))
            lines.put(None)

        threading.Thread(target=read, args=(self._process.stdout,), daemon=True).start()
        if lines.get(timeout=START) is None:
            raise RuntimeError("the worker does not start: run it with --worker to see why")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


# In the worker -----------------------------------------------------------------------------------------------------------


def worker(args: argparse.Namespace) -> None:
    """Measure the types that come on the standard input."""
    import warnings

    import peft  # noqa: F401 - imported before the clock of the first type runs
    import transformers

    import lm_eval_ext.backends.hf.model  # noqa: F401 - as above

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    measured("llama", args.dtype)
    print(MARK + "ready", flush=True)
    for name in sys.stdin:
        started = time.perf_counter()
        row = measured(name.strip(), args.dtype)
        row["seconds"] = round(time.perf_counter() - started, 1)
        print(MARK + json.dumps(row), flush=True)


def measured(case: str, dtype: str = "float32") -> dict[str, Any]:
    """The row of one case: a number for each column, or the reason why there is none."""
    import torch

    row: dict[str, Any] = {"case": case, "note": ""}
    try:
        import tiny_architectures

        if reason := tiny_architectures.NOT_BUILT.get(case):
            return {"case": case, "note": f"refused: {reason}"}
        model = tiny_architectures.tiny_model(case).to(getattr(torch, dtype))
    except Exception as error:  # whatever a config or a model raises
        return {"case": case, "note": f"no tiny model: {short(error)}"}
    try:
        checked = Checked(model)
    except Exception as error:
        return {"case": case, "note": f"refused: {short(error)}"}
    notes: list[str] = []
    for column, check in checked.checks().items():
        try:
            row[column] = check()
        except Refused as reason:
            row[column] = "refused"
            notes.append(f"{column}: {reason}")
        except Exception as error:
            row[column] = "failed"
            notes.append(f"{column}: {short(error)}")
    row["sharing"], row["reason"] = checked.verdict()
    if dtype == "bfloat16":
        row["noise"] = checked.noise()
        texts = {"generated": checked.plain_texts, "steered texts": checked.steered_texts_of_hooks}
        row["rounded"] = [name for name, texts_of in texts.items() if checked.changes_by_rounding(texts_of)]
    elif dtype == "float32" and (wrong := [column for column in COLUMNS if is_wrong(row, column)]):
        row["float64"] = in_float64(case, wrong)
    row["note"] = "; ".join([*([row["reason"]] if row["reason"] else []), *dict.fromkeys(notes)]).replace("|", "/")
    return row


def in_float64(case: str, columns: Sequence[str]) -> dict[str, Any]:
    """The same differences in float64: tiny where float32 only rounds, or a router or an indexer chooses otherwise by it."""
    import tiny_architectures

    found: dict[str, Any] = {}
    model = tiny_architectures.tiny_model(case).double()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the grouped products have no float64
    checked = Checked(model)
    for column in columns:
        try:
            found[column] = checked.checks()[column]()
        except Exception:  # it stays unexplained
            continue
    return found


def short(error: BaseException) -> str:
    """An error in a line."""
    lines = [text.strip() for text in str(error).strip().splitlines() if text.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:200]}"


class Refused(Exception):  # noqa: N818 - what is refused is no error
    """An error of ours that says why something is not done."""


@contextmanager
def refusing() -> Iterator[None]:
    """Our own errors are refusals."""
    from lm_eval_ext.errors import UserError

    try:
        yield
    except UserError as error:
        raise Refused(" ".join(str(error).split())[:200]) from error


class Checked:
    """One model in all checks."""

    def __init__(self, model: Any) -> None:
        if str(ROOT / "tests") not in sys.path:
            sys.path.insert(0, str(ROOT / "tests"))
        from support import tiny

        from lm_eval_ext.backends.hf.model import SteeredHFLM

        self.tiny = tiny
        self.model = model
        self.tokenizer = tiny.load_tokenizer("llama")
        self.tokenizer.pad_token = "<end>"
        self.common: dict[str, Any] = {"tokenizer": self.tokenizer, "max_length": CONTEXT, "device": "cpu"}
        self.ours = SteeredHFLM(model, batch_size=7, **self.common)
        if self.ours.backend != "causal":
            raise ValueError("the harness takes it for an encoder-decoder (backend=causal overrides that)")
        self.alone = Alone(model)

    def checks(self) -> dict[str, Callable[[], Any]]:
        """The check of each column."""
        return {
            "scores": self.scores,
            "hf": self.hf,
            "rolling": self.rolling,
            "generated": self.generated,
            "steered": self.steered,
            "steered texts": self.steered_texts,
            "states": self.states,
            "LoRA": self.lora,
            "sweep": self.sweep,
        }

    def verdict(self) -> tuple[str, str]:
        """What the scorer shares, and the reason why no more."""
        verdict = self.ours._scorer.verdict
        return ("-", "") if verdict is None else (verdict.sharing.name.lower(), verdict.reason)

    # Questions -----------------------------------------------------------------------------------------------------------

    def pairs(self) -> list[tuple[str, str]]:
        """Prompts and continuations of all forms."""
        texts = self.tiny.TEXTS
        questions = [texts["en"][:70], texts["ko"][:18], texts["es"][:24]]
        shots = "".join(f"{text[:20]} = {n}\n" for n, text in enumerate((texts["en"], texts["es"])))
        long = " ".join(texts.values())
        letters = [(f"{question}\nAnswer:", f" {letter}") for question in questions for letter in "ABCD"]
        options = [(question, text) for question in questions for text in (" rice", " uno dos", " 국조 is")]
        few_shot = [(shots + question[:9], text) for question in questions[:2] for text in (" rice", " uno dos tres")]
        crossing = [(long[start : start + 120], text) for start in (0, 9) for text in (" A", " rice is")]
        over_long = [(long + long[start:], text) for start in (0, 7) for text in (" A", " rice is rice")]
        return [*letters, *options, *few_shot, *crossing, *over_long, ("", " rice"), ("W", "!")]

    def requests(self, pairs: Sequence[tuple[str, str]], languages: list[str] | None = None) -> Any:
        return self.tiny.requests("loglikelihood", list(pairs), languages)

    def expected(self, pairs: Sequence[tuple[str, str]], **hooks: Any) -> list[float]:
        """Each pair by a forward of its own."""
        encoded = self.ours.encode(self.requests(pairs))
        return [self.alone.score(request.prompt, request.continuation, **hooks) for request in encoded]

    def noise(self) -> float:
        """Largest change of a plain forward's scores, steered or not, where the last bits change."""
        from lm_eval_ext.scoring.sharing import rounded

        vectors = self.vectors()
        pairs = [pair for pair in self.pairs() if len(pair[0]) < CONTEXT][::2]
        largest = 0.0
        for hook in ({}, self.plain_hook(vectors, "ko", "prompt")):
            expected = self.expected(pairs, **hook)
            for seed in (0, 1):
                with rounded(self.model, seed):
                    alone = Alone(self.model)
                    encoded = self.ours.encode(self.requests(pairs))
                    found = [alone.score(request.prompt, request.continuation, **hook) for request in encoded]
                largest = max(largest, difference(found, expected))
        return largest

    def changes_by_rounding(self, texts: Callable[[], list[str]]) -> bool:
        """Whether a change of the last bits changes a generated text."""
        from lm_eval_ext.scoring.sharing import rounded

        expected = texts()
        for seed in range(2):
            with rounded(self.model, seed):
                if texts() != expected:
                    return True
        return False

    # Checks ----------------------------------------------------------------------------------------------------------------

    def scores(self) -> float:
        """Log-likelihoods in batches of 1 and 7, automatic, and padded on the left."""
        largest = 0.0
        every, some = self.pairs(), self.pairs()[::4]
        for size, side, pairs in ((7, "right", every), (1, "right", some), ("auto", "right", some), (7, "left", some)):
            scorer, expected = self.ours._scorer, self.expected(pairs)
            self.ours.batch_size_per_gpu, scorer.padding_side = size, side
            if side == "left":
                verdict, scorer.verdict = scorer.verdict, None
            scorer.check(self.ours.encode(self.requests(pairs)))  # however few they are
            found = [value for value, _ in self.ours.loglikelihood(self.requests(pairs), disable_tqdm=True)]
            largest = max(largest, difference(found, expected))
            if side == "left":
                scorer.padding_side, scorer.verdict = "right", verdict
        self.ours.batch_size_per_gpu = 7
        return largest

    def hf(self) -> float:
        """The harness's model in batches of 7."""
        pairs = [pair for pair in self.pairs() if len(pair[0]) < CONTEXT]
        model = self.tiny.HFLM(pretrained=self.model, batch_size=7, **self.common)
        found = [value for value, _ in model.loglikelihood(self.requests(pairs), disable_tqdm=True)]
        return difference(found, self.expected(pairs))

    def rolling(self) -> float:
        """A text of several windows."""
        text = " ".join(self.tiny.TEXTS.values()) * 2
        (found,) = self.ours.loglikelihood_rolling(
            self.tiny.requests("loglikelihood_rolling", [(text,)]), disable_tqdm=True
        )
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        from lm_eval_ext.backends.encoding import encode

        tokens = list(encode(self.ours, [text])[text])
        windows = get_rolling_token_windows(tokens, self.ours.prefix_token_id, CONTEXT, context_len=1)
        pairs = [make_disjoint_window(window) for window in windows]
        return difference([found], [sum(self.alone.score(tuple(a), tuple(b)) for a, b in pairs)])

    def generation_requests(self, languages: list[str] | None = None) -> Any:
        texts = self.tiny.TEXTS
        prompts = [texts["en"][:60], texts["ko"][:12], texts["es"][:30], texts["en"][5:20]]
        return self.tiny.requests(
            "generate_until", [(p, {"until": ["\n\n"], "max_gen_toks": 6}) for p in prompts], languages
        )

    def generated(self) -> str:
        """Texts as those of `hf`."""
        return differing(self.ours.generate_until(self.generation_requests(), disable_tqdm=True), self.plain_texts())

    def plain_texts(self) -> list[str]:
        """Those of `hf`."""
        model = self.tiny.HFLM(pretrained=self.model, batch_size=7, **self.common)
        texts: list[str] = model.generate_until(self.generation_requests(), disable_tqdm=True)
        return texts

    def vectors(self) -> Any:
        """Random vectors in two languages at all layers."""
        import torch

        from lm_eval_ext.steering.decoder import hidden_size, layer_count
        from lm_eval_ext.steering.vectors import ModelIdentity, SteeringVectors, VectorInfo, VectorSet

        n, width = layer_count(self.model.config), hidden_size(self.model.config)
        generator = torch.Generator().manual_seed(3)
        entries = {}
        for language in ("en", "ko"):
            info = VectorInfo("loc", language, tuple(range(n)), "last", 9, "x", "0" * 64, "float32", (4.0,) * n)
            entries["loc", language] = SteeringVectors(info, {"vector": torch.randn(n, width, generator=generator)})
        return VectorSet(ModelIdentity.of("tiny", self.model.config), entries)

    def plain_hook(self, vectors: Any, language: str, position: str, layer: int = LAYER) -> dict[str, Any]:
        """What `Alone.score` adds where."""
        entry = vectors.vectors["loc", language]
        return {"layer": layer, "vector": entry.tensors["vector"][layer], "position": position}

    @contextmanager
    def under(self, plan: str, vectors: Any) -> Iterator[None]:
        """Inside, our model is steered."""
        from lm_eval_ext.steering.plan import Plan

        with refusing():
            self.ours.steer(Plan.parse(plan), vectors)
        try:
            yield
        finally:
            self.ours.steer(Plan(), None)

    def steered(self) -> float:
        """Three positions, two languages in a batch."""
        vectors, largest = self.vectors(), 0.0
        pairs = [pair for pair in self.pairs() if len(pair[0]) < CONTEXT]
        pairs = [*pairs[:2], *pairs[13:21:3], *pairs[21:25:2], pairs[-1]]
        languages = [("en", "ko")[number % 2] for number in range(len(pairs))]
        encoded = self.ours.encode(self.requests(pairs))
        for position in POSITIONS:
            with self.under(f"loc@{LAYER}:1/{position}", vectors), refusing():
                scored = self.ours.loglikelihood(self.requests(pairs, languages), disable_tqdm=True)
            expected = [
                self.alone.score(r.prompt, r.continuation, **self.plain_hook(vectors, language, position))
                for r, language in zip(encoded, languages, strict=True)
            ]
            largest = max(largest, difference([value for value, _ in scored], expected))
        return largest

    def steered_texts(self) -> str:
        """Generation in a padded batch, two languages in it."""
        vectors, found = self.vectors(), list[str]()
        for position in POSITIONS:
            with self.under(f"loc@{LAYER}:1/{position}", vectors), refusing():
                requests = self.generation_requests(LANGUAGES)
                found += self.ours.generate_until(requests, disable_tqdm=True)
        return differing(found, self.steered_texts_of_hooks())

    def steered_texts_of_hooks(self) -> list[str]:
        """The same texts by plain hooks."""
        vectors = self.vectors()
        return [text for position in POSITIONS for text in self.texts_under_hooks(vectors, LANGUAGES, position)]

    def texts_under_hooks(self, vectors: Any, languages: Sequence[str], position: str) -> list[str]:
        """What the harness's model generates under plain hooks, in the same padded batch."""
        import torch

        model = self.tiny.HFLM(pretrained=self.model, batch_size=7, **self.common)
        requests = self.generation_requests()
        language_of = {request.args[0]: code for request, code in zip(requests, languages, strict=True)}
        rows: list[str] = []
        encode, generate = model.tok_batch_encode, model._model_generate

        def encoding(strings: Any, *args: Any, **kwargs: Any) -> Any:
            rows[:] = [language_of[text] for text in strings]
            return encode(strings, *args, **kwargs)

        def generating(context: Any, *args: Any, **kwargs: Any) -> Any:
            matrix = torch.stack([vectors.vectors["loc", language].tensors["vector"][LAYER] for language in rows])
            real = kwargs.get("attention_mask", torch.ones_like(context)).bool()
            with self.alone.generating(matrix, real, position):
                return generate(context, *args, **kwargs)

        model.tok_batch_encode, model._model_generate = encoding, generating
        texts: list[str] = model.generate_until(requests, disable_tqdm=True)
        return texts

    def states(self) -> float:
        """The residual stream after two layers."""
        import torch

        from lm_eval_ext.steering.extraction import Capture

        ids = torch.tensor([self.tokenizer(self.tiny.TEXTS["en"]).input_ids])
        with torch.inference_mode():
            with refusing(), Capture(self.model, [0, LAYER]) as capture:
                found = list(capture.run(self.model, ids, lambda stream: stream.clone()))
            states = self.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        if states is None:
            raise Refused("the model returns no hidden states")
        first = 0 if self.model.config.model_type in WITHOUT_EMBEDDINGS else 1
        expected = [self.alone.stream(states[layer + first]) for layer in (0, LAYER)]
        return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))

    def lora(self) -> float:
        """Letters and options under an adapter of the attention."""
        import torch
        from peft import LoraConfig, get_peft_model

        from lm_eval_ext.backends.hf.model import SteeredHFLM

        torch.manual_seed(1)
        targets = [
            name
            for name, module in self.model.named_modules()
            if (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D")
            and any(part in name for part in ("att", "mixer", "rwkv", "temporal", "mlstm"))
            and not name.endswith("gate_proj")  # PEFT takes it for an expert's
        ]
        if not targets:
            raise Refused("no linear layer of its attention")
        if self.model.config.model_type in ("mamba", "mamba2", "falcon_mamba", "nemotron_h"):
            # PEFT refuses Mamba's other projections.
            targets = [name for name in targets if name.endswith("in_proj")]
        adapted = get_peft_model(self.model, LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")).eval()
        try:
            with torch.no_grad():
                for name, parameter in adapted.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_(std=0.1)
            pairs = self.pairs()[8:18:2]
            ours = SteeredHFLM(adapted, batch_size=7, **self.common)
            alone = Alone(adapted)
            expected = [alone.score(r.prompt, r.continuation) for r in ours.encode(self.requests(pairs))]
            ours._scorer.check(ours.encode(self.requests(pairs)))
            return difference(
                [value for value, _ in ours.loglikelihood(self.requests(pairs), disable_tqdm=True)], expected
            )
        finally:
            self.model = adapted.unload()

    def sweep(self) -> float:
        """Cells at two positions and two layers, of which layers above the second may reuse its keys and values."""
        import tempfile

        from lm_eval_ext.scoring.batching import Budget
        from lm_eval_ext.scoring.shared_forward import SweepModel
        from lm_eval_ext.scoring.token_trees import Tree
        from lm_eval_ext.steering.decoder import layer_count
        from lm_eval_ext.steering.plan import Plan
        from lm_eval_ext.sweep.engine import SeparateEngine, SharedEngine
        from lm_eval_ext.sweep.grid import Condition
        from lm_eval_ext.sweep.questions import ScoredTree
        from lm_eval_ext.sweep.store import Store

        vectors, n = self.vectors(), layer_count(self.model.config)
        with refusing():
            trees = SweepModel(self.model)
        grown: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        pairs = [pair for pair in self.pairs() if len(pair[0]) < CONTEXT]
        for request in self.ours.encode(self.requests([*pairs[12:14], *pairs[15:17], *pairs[21:25:3]])):
            grown.setdefault(request.prompt, []).append(request.continuation)
        scored = [
            ScoredTree(Tree.grow(prompt, options), ("en", "ko")[k % 2], True, tuple((0,) for _ in options), str(k))
            for k, (prompt, options) in enumerate(grown.items())
        ]
        reason = trees.check([tree.tree for tree in scored])
        engine: Any = SeparateEngine(self.model, vectors, n, max_length=CONTEXT)
        if not reason:
            engine = SharedEngine(trees, vectors, n, Budget(1024, 2**26))
        layers = sorted({0, max(0, n - 2)})
        plans = {(layer, p): f"loc@{layer}:1/{p}" for layer in layers for p in ("prompt", "last")}
        conditions = [Condition(Plan()), *(Condition(Plan.parse(plan)) for plan in plans.values())]
        largest = 0.0
        with tempfile.TemporaryDirectory() as folder, refusing():
            store = Store(Path(folder), {"model": "tiny"})
            engine.run(scored, conditions, store, lambda n: None)
            for (layer, position), plan in plans.items():
                for tree in scored:
                    hook = self.plain_hook(vectors, tree.language, position, layer)
                    options = grown[tree.tree.prompt]
                    expected = [self.alone.score(tree.tree.prompt, option, **hook) for option in options]
                    found = store.get(str(Plan.parse(plan)), tree.key)
                    largest = max(largest, difference(found or [math.nan] * len(options), expected))
            store.close()
        return largest


class Alone:
    """The oracle: plain forwards of one sequence, with a plain hook where it is steered."""

    def __init__(self, model: Any) -> None:
        from lm_eval_ext.scoring.sharing import rope_switch

        self.model = model
        self._grows = rope_switch(model) is not None
        self._known: dict[Any, Any] = {}

    def score(
        self,
        prompt: tuple[int, ...],
        continuation: tuple[int, ...],
        layer: int | None = None,
        vector: Any = None,
        position: str = "",
    ) -> float:
        """Log-likelihood of a continuation."""
        import torch

        fed = (*prompt, *continuation[:-1])[-CONTEXT:]
        length = len(fed) - len(continuation) + 1
        key = (fed, layer, position, length if layer is not None else 0, None if vector is None else float(vector[0]))
        if key not in self._known:
            ids = torch.tensor([fed])
            mask = torch.zeros(1, len(fed), 1)
            mask[0, {"last": slice(length - 1, length), "prompt": slice(0, length)}.get(position, slice(None))] = 1
            with torch.inference_mode():
                if self._grows:  # frequencies that grew with a longer sequence before this one go back
                    self.model(input_ids=ids[:, :1], use_cache=False)
                with self._adding(layer, lambda shape: vector * mask):
                    logits = self.model(input_ids=ids, use_cache=False).logits[0]
            self._known[key] = logits.double().log_softmax(-1)
        log_probabilities = self._known[key][length - 1 :]
        return float(sum(log_probabilities[k, token] for k, token in enumerate(continuation)))

    @contextmanager
    def generating(self, matrix: Any, real: Any, position: str) -> Iterator[None]:
        """Inside, a padded batch [rows, length] with its mask of real tokens is generated from under plain hooks."""
        import torch

        seen = [0]

        def added(shape: tuple[int, int]) -> Any:
            rows, length = shape
            start = 0 if length >= real.shape[1] else seen[0]  # a model without a cache sends all tokens again
            seen[0] = start + length
            index = torch.arange(start, start + length)[None]
            width = real.shape[1]
            prompt = torch.nn.functional.pad(real, (0, max(0, start + length - width)))[:, start : start + length]
            mask = {
                "all": torch.ones(rows, length, dtype=torch.bool),
                "prompt": prompt,
                "last": (index >= width - 1).expand(rows, -1),
            }[position]
            return matrix[:, None] * mask[..., None]

        with self._adding(LAYER, added):
            yield

    @contextmanager
    def _adding(self, layer: int | None, added: Callable[[tuple[int, int]], Any]) -> Iterator[None]:
        if layer is None:
            yield
            return
        from lm_eval_ext.steering.decoder import decoder_layers

        def hook(module: Any, inputs: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, (tuple, list)) else output
            streams, axis = self._streams(first)
            steered = [stream + added(tuple(stream.shape[:2])).to(stream.dtype) for stream in streams]
            value = self._joined(first, steered, axis)
            return (value, *output[1:]) if isinstance(output, (tuple, list)) else value

        handle = decoder_layers(self.model)[layer].register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def _streams(self, output: Any) -> tuple[list[Any], int | None]:
        """The streams to add to: the only one; AltUp's active one (Gemma 3n); all of hyper-connections (DeepSeek V4,
        and Qwen4-Exp with all in the last dimension)."""
        text = self.model.config.get_text_config(decoder=True)
        if output.dim() == 3 and hasattr(text, "hc_count"):
            return list(output.chunk(text.hc_count, -1)), -1
        if output.dim() == 3:
            return [output], None
        if hasattr(text, "altup_active_idx"):
            return [output[text.altup_active_idx]], 0
        return list(output.unbind(2)), 2

    def _joined(self, output: Any, streams: list[Any], axis: int | None) -> Any:
        import torch

        if axis is None:
            return streams[0]
        if axis == -1:
            return torch.cat(streams, -1)
        if axis == 2:
            return torch.stack(streams, 2)
        index = self.model.config.get_text_config(decoder=True).altup_active_idx
        return torch.stack([streams[0] if k == index else output[k] for k in range(len(output))])

    def stream(self, states: Any) -> Any:
        """The residual stream in hidden states: of several streams the active one, or their mean."""
        text = self.model.config.get_text_config(decoder=True)
        if states.dim() == 3:
            return sum(states.chunk(text.hc_count, -1)) / text.hc_count if hasattr(text, "hc_count") else states
        return states[text.altup_active_idx] if hasattr(text, "altup_active_idx") else states.mean(2)


def difference(found: Sequence[float], expected: Sequence[float]) -> float:
    """The largest difference; NaN where anything is."""
    differences = [abs(a - b) for a, b in zip(found, expected, strict=True)]
    return math.nan if any(math.isnan(value) for value in differences) else max(differences)


def differing(found: Sequence[str], expected: Sequence[str]) -> str:
    """How many texts differ."""
    n = sum(a != b for a, b in zip(found, expected, strict=True))
    return f"{n} of {len(found)}" if n else "ok"


if __name__ == "__main__":
    main()
