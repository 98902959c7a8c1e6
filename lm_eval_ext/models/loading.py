"""Loading models, with errors that name the model and say what to do."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import transformers
from packaging.version import Version

from lm_eval_ext.errors import ModelError, UserError
from lm_eval_ext.models import precision

if TYPE_CHECKING:
    from collections.abc import Iterator

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
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, peft)
        return model.to(target).eval(), tokenizer
