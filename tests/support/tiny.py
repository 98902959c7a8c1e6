"""Tiny random models of several architectures, their vectors, and small local tasks: real code, no download.

Weights are large enough for logits to differ between tokens and between prompts; two of the models see only a window of
eight tokens in some layers; two of the tokenizers prepend a beginning-of-sequence token.
"""

from __future__ import annotations

import atexit
import copy
import inspect
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from lm_eval_ext.backends.hf.model import SteeredHFLM
from lm_eval_ext.scoring.requests import Request
from lm_eval_ext.steering.vectors import ModelIdentity, SteeringVectors, VectorInfo, VectorSet

if TYPE_CHECKING:
    from lm_eval_ext.scoring.sharing import Verdict

HIDDEN, LAYERS, WINDOW, CONTEXT = 32, 4, 8, 128
FAMILIES = ("gemma3", "llama", "qwen2", "mistral", "gpt2")

TEXTS = {
    "en": "Which bird is the national bird? The emergency number is one one nine, and the answer is rice.",
    "ko": "어느 새가 국조인가? 긴급 전화번호는 일일구, 그리고 답은 쌀이다.",
    "es": "¿Qué ave es el ave nacional? El número de emergencia es uno uno dos y la respuesta es arroz.",
    "zh": "国鸟是哪一种鸟？紧急电话号码是一一九，答案是米饭。",
}
LANGUAGES = tuple(TEXTS)

_HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
_SHAPE: dict[str, Any] = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "max_position_embeddings": CONTEXT}
_MIXED = ["sliding_attention", "full_attention"] * (LAYERS // 2)

_root = Path(tempfile.mkdtemp(prefix="lm_eval_ext-tiny-"))
atexit.register(shutil.rmtree, _root, ignore_errors=True)


def config(family: str, **changes: Any) -> Any:
    """The config of a tiny model."""
    common: dict[str, Any] = {"vocab_size": len(tokenizer(family)), "initializer_range": 0.3, "dtype": "float32"}
    common |= {"bos_token_id": 1 if has_bos(family) else 0, "eos_token_id": 0, "pad_token_id": None} | changes
    match family:
        case "gemma3":
            sliding = {"sliding_window": WINDOW, "layer_types": _MIXED, "head_dim": 8, "query_pre_attn_scalar": 8}
            return Gemma3TextConfig(**{**_SHAPE, **_HEADS, **sliding, **common})
        case "llama":
            return LlamaConfig(**{**_SHAPE, **_HEADS, **common})
        case "qwen2":
            return Qwen2Config(**{**_SHAPE, **_HEADS, **common})
        case "mistral":
            return MistralConfig(**{**_SHAPE, **_HEADS, "sliding_window": WINDOW, **common})
        case "gpt2":
            shape = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": CONTEXT}
            return GPT2Config(**{**shape, "activation_function": "gelu_new", **common})
        case "mpt":  # computes positions itself; not one of FAMILIES
            shape = {"d_model": HIDDEN, "n_layers": LAYERS, "n_heads": 4, "max_seq_len": 2 * CONTEXT}
            return AutoConfig.for_model("mpt", **{**shape, **common})
    raise KeyError(family)


def has_bos(family: str) -> bool:
    """Whether the family's tokenizer prepends a beginning-of-sequence token."""
    return family in ("gemma3", "llama", "mistral")


@cache
def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: token 0 ends, token 1 begins where the family has a beginning."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=["<end>", "<begin>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    inner.train_from_iterator([*TEXTS.values(), "\nAnswer: A B C D" * 20], trainer)  # letters: one token each
    special = {"eos_token": "<end>"}
    if has_bos(family):
        inner.post_processor = processors.TemplateProcessing(
            single="<begin> $A", pair="<begin> $A <begin> $B", special_tokens=[("<begin>", 1)]
        )
        special["bos_token"] = "<begin>"
    else:
        special["pad_token"] = "<end>"
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


@cache
def folder(family: str) -> Path:
    """The folder of a saved model; made once."""
    path = _root / family
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config(family))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(path)
    tokenizer(family).save_pretrained(path)
    return path


def load(family: str, **options: Any) -> Any:
    """The model in float32, ready to run: the caller's own (a copy, which costs less than reading it again)."""
    if not options:
        return copy.deepcopy(_loaded(family))
    return AutoModelForCausalLM.from_pretrained(folder(family), dtype=torch.float32, **options).eval()


@cache
def _loaded(family: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder(family), dtype=torch.float32).eval()


def multimodal() -> Any:
    """Gemma 3 with a vision tower of as many layers, as `AutoModelForCausalLM` loads the models of 4B parameters and up."""
    vision = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64}
    text = config("gemma3").to_dict()
    torch.manual_seed(7)
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
        )
    ).eval()


@cache
def roomy_folder(family: str) -> Path:
    """The folder of a tiny model whose context holds any question of the shipped tasks."""
    path = _root / f"{family}-roomy"
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(config(family, max_position_embeddings=1024)).save_pretrained(path)
    tokenizer(family).save_pretrained(path)
    return path


def roomy(family: str) -> tuple[Any, Any]:
    """That model and its tokenizer."""
    path = roomy_folder(family)
    return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


def load_tokenizer(family: str) -> Any:
    """The tokenizer as it is read from the folder."""
    return AutoTokenizer.from_pretrained(folder(family))


@cache
def adapter(family: str) -> Path:
    """The folder of a LoRA adapter that changes what the model says."""
    from peft import LoraConfig, get_peft_model

    path = _root / f"{family}-lora"
    targets = ["c_attn"] if family == "gpt2" else ["q_proj", "v_proj"]
    torch.manual_seed(11)
    adapted = get_peft_model(load(family), LoraConfig(r=2, target_modules=targets, fan_in_fan_out=family == "gpt2"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(path)
    return path


def vector_set(
    family: str,
    kinds: tuple[str, ...] = ("en", "loc"),
    languages: tuple[str, ...] = LANGUAGES,
    layers: tuple[int, ...] = tuple(range(LAYERS)),
    scale: float = 0.5,
) -> VectorSet:
    """Random vectors, one per kind, language and layer, big enough to change answers."""
    generator = torch.Generator().manual_seed(3)
    entries = {}
    for kind in kinds:
        for language in languages:
            if kind == "en" and language == "en":
                continue
            info = VectorInfo(kind, language, layers, "last", 9, "test", "0" * 64, "float32", (4.0,) * len(layers))
            values = torch.randn(len(layers), HIDDEN, generator=generator) * scale
            entries[kind, language] = SteeringVectors(info, {"vector": values})
    return VectorSet(ModelIdentity.of(f"tiny-{family}", AutoConfig.from_pretrained(folder(family))), entries)


@cache
def vector_file(family: str, kinds: tuple[str, ...] = ("en", "loc"), languages: tuple[str, ...] = LANGUAGES) -> Path:
    """`vector_set` saved."""
    path = _root / f"{family}-{'-'.join(kinds)}-{'-'.join(languages)}.safetensors"
    vector_set(family, kinds, languages).save(path)
    return path


def hf(family: str, **arguments: Any) -> HFLM:
    """The harness's own model, in float32 on the CPU."""
    return HFLM(**{"pretrained": str(folder(family)), "dtype": "float32", "device": "cpu", "batch_size": 3} | arguments)


def steered(family: str, steer: Any = "", **arguments: Any) -> SteeredHFLM:
    """`steered-hf`, in float32 on the CPU.

    What its rows may share is measured once for a family and its arguments, which costs more than most of what is asked.
    """
    defaults = {"pretrained": str(folder(family)), "vectors": str(vector_file(family)), "steer": steer}
    model = SteeredHFLM(**defaults | {"dtype": "float32", "device": "cpu", "batch_size": 3} | arguments)
    others = {name: value for name, value in arguments.items() if name not in ("vectors", "batch_size", "lang")}
    if all(isinstance(value, str | int | float | bool) for value in others.values()):
        scorer, key = model._scorer, (family, *sorted(others.items()))
        if key not in _verdicts:
            length = max(1, min(scorer.max_length, CONTEXT) - 4)
            longest = Request((tuple(range(2, 30)) * length)[:length], (2, 3, 4), 0)
            _verdicts[key] = (scorer.check([longest]), scorer.padding_side)
        scorer.verdict, scorer.padding_side = _verdicts[key]
    return model


_verdicts: dict[tuple[Any, ...], tuple[Verdict, Any]] = {}


def hooks(model: Any) -> list[str]:
    """The modules of a model that have forward hooks."""
    return [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]


def requests(kind: str, arguments: list[tuple[Any, ...]], languages: list[str] | None = None) -> list[Instance]:
    """What the harness hands to a model; the language stands in the document."""
    return [
        instance(kind, given, {} if languages is None else {"language": languages[i]}, i)
        for i, given in enumerate(arguments)
    ]


#: Whether the installed harness is of 0.5 or later: a request names its task, and a whole text has an empty context.
IS_NEXT_HARNESS = inspect.signature(Instance).parameters["doc_id"].kind is inspect.Parameter.KEYWORD_ONLY


def instance(
    kind: str, arguments: tuple[Any, ...], document: Any = None, doc_id: int = 0, task: str = "tiny"
) -> Instance:
    """A request of the harness."""
    if not IS_NEXT_HARNESS:
        return Instance(kind, document or {}, arguments, 0, (task, doc_id, 1))
    if kind == "loglikelihood_rolling":
        arguments = ("", *arguments)
    return Instance(request_type=kind, doc=document or {}, arguments=arguments, task_name=task, doc_id=doc_id)


def rolling(responses: list[Any]) -> list[float]:
    """The log-likelihoods of whole texts, which releases of the harness give alone or with a flag."""
    return [response[0] if isinstance(response, tuple) else response for response in responses]


_TASKS = {
    "letters": """
output_type: multiple_choice
doc_to_text: "{{question}}\\nA. {{options[0]}}\\nB. {{options[1]}}\\nC. {{options[2]}}\\nD. {{options[3]}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: gold
metric_list: [{metric: acc}]
""",
    "cloze": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: options
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_mutual_info}]
""",
    "generate": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{options[0]}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 9}
metric_list: [{metric: exact_match}]
""",
    "beams": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{options[0]}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 6, num_beams: 3, do_sample: false}
metric_list: [{metric: exact_match}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: byte_perplexity}]
""",
}

_DOCUMENTS = '''
"""Documents of the tiny tasks."""

import datasets

TEXTS = {texts!r}


def documents(languages="en ko es zh", column=True, rows=2, **_):
    rows = [
        {{
            "language": language,
            "question": " ".join(TEXTS[language].split()[: 4 + 3 * i]) + f" {{i}}?",
            "options": [TEXTS[language][k + i : k + i + 3 + 4 * k] for k in (1, 6, 11, 16)],
            "gold": i % 4,
        }}
        for language in languages.split()
        for i in range(rows)
    ]
    if not column:
        for row in rows:
            del row["language"]
    return {{"test": datasets.Dataset.from_list(rows)}}
'''


@cache
def task_folder() -> Path:
    """Tasks `tiny_FORM` (language in a column), `tiny_meta_FORM_LANGUAGE` (in the metadata), `tiny_mute_FORM` (nowhere)."""
    path = _root / "tasks"
    path.mkdir()
    (path / "tiny_documents.py").write_text(_DOCUMENTS.format(texts=TEXTS), encoding="utf-8")
    common = "custom_dataset: !function tiny_documents.documents\ntest_split: test\nnum_fewshot: 0\n"

    def write(name: str, form: str, metadata: str, languages: str, column: bool) -> None:
        (path / f"{name}.yaml").write_text(
            f"task: {name}\n{common}{_TASKS[form]}metadata: {{version: 1.0{metadata}}}\n"
            f"dataset_kwargs: {{languages: {languages}, column: {str(column).lower()}}}\n",
            encoding="utf-8",
        )

    for form in _TASKS:
        write(f"tiny_{form}", form, "", " ".join(LANGUAGES), column=True)
        write(f"tiny_mute_{form}", form, "", "ko", column=False)
        for language in LANGUAGES:
            write(f"tiny_meta_{form}_{language}", form, f", language: {language}", language, column=False)
    return path


@cache
def task_manager(**wanted: Any) -> TaskManager:
    """A task manager that knows the tiny tasks only, in place of the harness's, whatever is wanted."""
    return TaskManager(include_path=str(task_folder()), include_defaults=False)


def evaluate(model: Any, *tasks: str, **arguments: Any) -> dict[str, Any]:
    """A run of the harness on tiny tasks (without its report on the machine, which takes as long as the run)."""
    with mock.patch("lm_eval.evaluator.add_env_info"):
        results: dict[str, Any] = simple_evaluate(
            model=model, tasks=list(tasks), task_manager=task_manager(), bootstrap_iters=0, **arguments
        )
    return results


def answers(results: dict[str, Any]) -> dict[str, list[Any]]:
    """Task to the model's responses per document."""
    return {task: [sample["resps"] for sample in samples] for task, samples in results["samples"].items()}
