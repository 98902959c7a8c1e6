"""Loading a model: whatever goes wrong is one message that names the model."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import transformers
from packaging.version import Version

from lm_eval_ext.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

_HINT = (
    "Give a folder with config.json, weights and tokenizer, a name on the hub that this machine can reach, "
    "or leave the model out for the embedded one"
)

#: The argument of `from_pretrained` that sets the dtype, by release.
DTYPE_ARGUMENT = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"


@contextmanager
def loading(name: str, hint: str = _HINT) -> Iterator[None]:
    """Say what is wrong with a model, its adapter or an argument of theirs, found while they are loaded.

    Args:
        name: what the user called the model.
        hint: what to do about it.

    Raises:
        ModelError: anything that transformers, PEFT or the harness raised inside.
    """
    try:
        yield
    # The libraries' failures share no base class: OSError, ValueError, TypeError, SafetensorError, ImportError ...
    except Exception as error:
        because = str(error).strip().partition("\n")[0][:300]
        raise ModelError(
            f"cannot load the model {name!r}\n  because: {type(error).__name__}: {because}\n{hint}"
        ) from error


def load_config(name: str, **options: Any) -> Any:
    """The config alone, so that mistakes are found before weights are loaded.

    Args:
        name: name on the hub or folder.
        options: what `AutoConfig.from_pretrained` takes; those that are None or empty are left out.

    Raises:
        ModelError: it cannot be read.
    """
    with loading(name):
        return transformers.AutoConfig.from_pretrained(name, **{key: value for key, value in options.items() if value})
