"""What full runs of Global-MMLU and BLEnD cost on vLLM, in GPU hours: the table of docs/_parts/vllm.md.

python benchmarks/vllm_costs.py

Counted, not measured: two floating-point operations for each weight and token that is run, the LM head once for each scored
place, and the bytes of weights and keys and values that must fit. Prompts were counted with the tokenizer of Gemma 3.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Of an H100 (SXM): dense bfloat16 operations a second, bytes of memory, bytes read a second.
PEAK, MEMORY, BANDWIDTH = 989e12, 80e9, 3.35e12

#: Share of the peak that prefill of large batches reaches (assumed; eager mode included).
SHARE = 0.40

#: Tokens of one step of the engine.
STEP = 8192

LANGUAGES = 7
GMMLU_QUESTIONS, GMMLU_TOKENS = 14_042 * LANGUAGES, 111  # mean of 400 questions in English (107) and Arabic (114)
BLEND_QUESTIONS, BLEND_TOKENS, OPTIONS, OPTION_TOKENS = 582 * 2, 60, 4, 4  # with and without the country; about

#: Tokens that an option's prefill runs again: what of the prompt is in no full block of 16, on average, and its own.
OPTION_RUN = 8 + OPTION_TOKENS

#: Evaluations of a study: unsteered, EN, LOC, both, and four controls, of four models (base, and aligned in three ways).
EVALUATIONS = 8 * 4


@dataclass(frozen=True)
class Model:
    """Weights of the layers and of the LM head, bytes of keys and values a token in bfloat16, and GPUs of a replica."""

    name: str
    body: float
    head: float
    kv_bytes: int
    gpus: int


MODELS = (
    Model("12B (Gemma 3)", 10.8e9, 262_208 * 3840, 2 * 48 * 8 * 256 * 2, 1),
    Model("70B (Llama 3)", 68.5e9, 128_256 * 8192, 2 * 80 * 8 * 128 * 2, 4),
)


def tokens_and_places(*, shared: bool) -> tuple[float, float]:
    """Tokens run and places scored: letters in one prefill, options from a cached prompt; or every option a prompt."""
    gmmlu, blend = GMMLU_QUESTIONS * GMMLU_TOKENS, BLEND_QUESTIONS * BLEND_TOKENS
    if shared:
        options = BLEND_QUESTIONS * OPTIONS * OPTION_RUN
        return gmmlu + blend + blend + options, GMMLU_QUESTIONS + BLEND_QUESTIONS * (1 + OPTIONS * OPTION_TOKENS)
    tokens = OPTIONS * (gmmlu + blend + blend)
    return tokens, tokens  # log-probabilities of the whole prompt: the LM head at every token


def hours(model: Model, *, shared: bool = True) -> float:
    """GPU hours of one evaluation."""
    tokens, places = tokens_and_places(shared=shared)
    return 2 * (model.body * tokens + model.head * places) / (PEAK * SHARE) / 3600


def main() -> None:
    print("| | " + " | ".join(model.name for model in MODELS) + " |\n|---|" + "---:|" * len(MODELS))

    def row(what: str, *cells: str) -> None:
        print(f"| {what} | " + " | ".join(cells) + " |")

    tokens, _ = tokens_and_places(shared=True)
    row("tokens run, one evaluation", *(f"{tokens / 1e6:.1f} million" for _ in MODELS))
    row("GPUs of a replica (80 GB)", *(str(model.gpus) for model in MODELS))
    row("weights, bfloat16, each GPU", *(f"{2 * (m.body + m.head) / m.gpus / 1e9:.0f} GB" for m in MODELS))
    row("keys and values, each token and GPU", *(f"{m.kv_bytes / m.gpus / 1e3:.0f} kB" for m in MODELS))
    reads = (2 * m.body / m.gpus / BANDWIDTH / (2 * m.body * STEP / m.gpus / (PEAK * SHARE)) for m in MODELS)
    row("of a step's time, reading weights", *(f"{share:.0%}" for share in reads))
    row("one evaluation", *(f"{hours(m):.2f} GPU h" for m in MODELS))
    row("the same, every option a prompt (`--model vllm`)", *(f"{hours(m, shared=False):.2f} GPU h" for m in MODELS))
    row(f"a study: {EVALUATIONS} evaluations", *(f"{EVALUATIONS * hours(m):.0f} GPU h" for m in MODELS))
    for nodes in (1, 4):
        cells = (f"{EVALUATIONS * hours(m) / (8 * nodes):.1f} h, {8 * nodes // m.gpus} replicas" for m in MODELS)
        text = "1 node" if nodes == 1 else f"{nodes} nodes"
        row(f"the study on {text} of 8 GPUs", *cells)


if __name__ == "__main__":
    main()
