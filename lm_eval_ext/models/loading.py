"""Loading models, with errors that name the model and say what to do."""

from __future__ import annotations

import ctypes
import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import transformers
from packaging.version import Version

from lm_eval_ext.errors import ModelError, UserError
from lm_eval_ext.models import precision

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

_HINT = (
    "Give a folder with config.json, weights and tokenizer, a name on the hub that this machine can reach, "
    "or leave the model out for the embedded one"
)

DTYPES = ("auto", "bfloat16", "float32", "float16")

#: The argument of `from_pretrained` that sets the dtype, by release.
DTYPE_ARGUMENT = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"


@contextmanager
def loading(name: str, hint: str = _HINT) -> Iterator[None]:
    """Turn any error of loading a model or an adapter into a `ModelError`.

    Args:
        name: of the model, as given by the user.
        hint: what to do about it.

    Raises:
        ModelError: anything that transformers, PEFT or the harness raised inside.
    """
    try:
        yield
    # The libraries' failures share no base class: OSError, ValueError, TypeError, SafetensorError, ImportError ...
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:300]
        raise ModelError(
            f"cannot load the model {name!r}\n  because: {type(error).__name__}: {reason}\n{hint}"
        ) from error


def return_freed_memory() -> None:
    """Give the system back what loading has freed, where the C library is glibc, which keeps it for later.

    A tokenizer of 262,144 tokens is read from 33 MB of JSON, for which 300 MB are used for a moment.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def load_config(name: str, **options: Any) -> Any:
    """The config of a model, without its weights.

    Args:
        name: name on the hub or folder.
        options: what `AutoConfig.from_pretrained` takes; those that are None or empty are left out.

    Raises:
        ModelError: it cannot be read.
    """
    with loading(name):
        return transformers.AutoConfig.from_pretrained(name, **{key: value for key, value in options.items() if value})


def load_tokenizer(name: str, **options: Any) -> Any:
    """The tokenizer of a model.

    Args:
        name: name on the hub or folder.
        options: what `AutoTokenizer.from_pretrained` takes.

    Raises:
        ModelError: it cannot be loaded.
    """
    with loading(name):
        return transformers.AutoTokenizer.from_pretrained(name, **options)


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "",
    revision: str = "main",
    peft: str = "",
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """A causal language model ready to run, and its tokenizer.

    Args:
        name: name on the hub or folder.
        dtype: one of `DTYPES`; for `auto` see `precision.choose`.
        device: such as `cuda:1`; a GPU if there is one where empty.
        revision: of the model on the hub.
        peft: adapter to load on top.
        trust_remote_code: run the model repository's own code.

    Raises:
        ModelError: model or adapter cannot be loaded.
        UserError: unknown dtype.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r} is unknown, valid: {', '.join(DTYPES)}")
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = precision.choose(dtype, load_config(name, **options), on_cpu=target.startswith("cpu")).argument
    with loading(name):
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        model = AutoModelForCausalLM.from_pretrained(name, **{DTYPE_ARGUMENT: chosen}, **options)
        if peft:
            model = with_adapter(model, peft)
        return model.to(target).eval(), tokenizer


def with_adapter(model: Any, adapter: str, **options: Any) -> Any:
    """A model with a PEFT adapter on it.

    The embeddings are resized only to what the adapter brings rows for. Where a vocabulary is padded, or the tokenizer has a
    token without a row (Gemma 3 1B), resizing them to the tokenizer, as the harness's `hf` does, changes the probability of
    every token: an adapter of zeros would not be the model without it, and not the merged model.

    Args:
        model: of transformers.
        adapter: folder or name on the hub.
        options: what `PeftModel.from_pretrained` takes, such as `revision`.
    """
    from peft import PeftModel

    rows = _adapter_rows(model, adapter, **options)
    if rows is not None and rows != model.get_input_embeddings().weight.shape[0]:
        log.info("The adapter %s has %d tokens: the embeddings are resized to them", adapter, rows)
        model.resize_token_embeddings(rows, mean_resizing=False)
    return PeftModel.from_pretrained(model, adapter, **options)


def _adapter_rows(model: Any, adapter: str, **options: Any) -> int | None:
    """Rows of the vocabulary that an adapter was trained with; None where it changes no embedding."""
    from peft import PeftConfig
    from peft.utils import load_peft_weights

    # Single trained tokens are saved without the rest of the table.
    single = getattr(PeftConfig.from_pretrained(adapter, **options), "trainable_token_indices", None) or []
    last = max(
        (index for part in (single.values() if isinstance(single, dict) else [single]) for index in part), default=0
    )
    if last >= model.get_input_embeddings().weight.shape[0]:
        return int(last) + 1
    tables = {model.get_input_embeddings(), model.get_output_embeddings()} - {None}
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if module in tables}
    for key, tensor in load_peft_weights(adapter, device="cpu", **options).items():
        parts = key.split(".")
        if not names & set(parts):
            continue
        if parts[-1] == "weight" and parts[-2] in ("lora_A", "lora_B"):  # of an output head
            if parts[-2] == "lora_B":
                return int(tensor.shape[0])
        elif parts[-1].startswith("lora_embedding"):
            if parts[-1] == "lora_embedding_A":
                return int(tensor.shape[1])
        elif parts[-1] == "weight":
            return int(tensor.shape[0])
    return None
