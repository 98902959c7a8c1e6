"""Making a run again: the command that a bundle holds, read as somebody else's text.

Only the harness's evaluation is run, with options that say what is evaluated: no word of a bundle reaches a shell, and a
bundle cannot ask for code of a model's repository or of a task file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_ext.errors import ArchiveError
from lm_eval_ext.fingerprints import hash_file
from lm_eval_ext.redaction import LEFT_OUT, parse_args

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lm_eval_ext.bundle.manifest import Manifest

#: Options of a bundle's command and whether a value follows.
_OPTIONS = {
    **dict.fromkeys(("--model", "--model_args", "--tasks", "--num_fewshot", "--limit", "--batch_size"), True),
    **dict.fromkeys(("--gen_kwargs", "--seed", "--system_instruction", "--fewshot_as_multiturn"), True),
    **dict.fromkeys(("--apply_chat_template", "--log_samples"), False),
}
_TASK = re.compile(r"[\w.+-]+")
_MODEL = re.compile(r"[A-Za-z0-9][\w.-]*")
#: Model arguments that make the model's repository run code of its own.
_RUNS_CODE = ("trust_remote_code",)
_FALSE = ("", "false", "none", "0")


@dataclass(frozen=True)
class Rerun:
    """What makes a run again.

    Attributes:
        words: the command, of the harness.
        notes: what the reader should know of it.
        missing: model arguments without which it is another run: credentials that were left out.
    """

    words: tuple[str, ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...]


def rerun_command(manifest: Manifest, given: Mapping[str, str], output: Path) -> Rerun:
    """The command of a bundle's run.

    Args:
        manifest: of the bundle.
        given: model arguments that go before the bundle's: paths of this machine, credentials.
        output: folder for the new results.

    Raises:
        ArchiveError: a command that is not an evaluation, or asks for more than one.
    """
    options = _options(manifest.command)
    if not _MODEL.fullmatch(options.get("--model") or ""):
        raise ArchiveError(f"the bundle's command names no model type, but {options.get('--model')!r}")
    tasks = (options.get("--tasks") or "").split(",")
    if wrong := [task for task in tasks if not _TASK.fullmatch(task) or task.endswith((".yaml", ".yml", ".py"))]:
        raise ArchiveError(f"the bundle's command names {wrong[0]!r} for a task; only names of tasks are run, no files")
    asked = parse_args(options.get("--model_args"))
    for name in _RUNS_CODE:
        if str(asked.get(name, "")).lower() not in _FALSE and name not in given:
            raise ArchiveError(
                f"the bundle's command runs code of the model's repository ({name}); if you trust it, say "
                f"--model_args {name}=True"
            )
    arguments = {**asked, **given}
    missing = tuple(name for name, value in arguments.items() if LEFT_OUT in str(value))
    shown = {name: value for name, value in arguments.items() if name not in missing}
    words = ["lm_eval"]
    for option, takes_value in _OPTIONS.items():
        if option == "--model_args":
            words += [option, ",".join(f"{name}={value}" for name, value in shown.items())] if shown else []
        elif option in options:
            words += [option, options[option]] if takes_value else [option]
    notes = [f"{name} was left out of the bundle: give it with --model_args {name}=..." for name in missing]
    if manifest.vectors_sha256 and (file := shown.get("vectors")):
        notes.append(f"vectors={file} is a file of your own with the SHA-256 {manifest.vectors_sha256}")
    return Rerun((*words, "--output_path", str(output)), tuple(notes), missing)


def check_files(manifest: Manifest, rerun: Rerun) -> None:
    """Refuse to run what cannot give the same results.

    Raises:
        ArchiveError: a credential that is missing, or a vector file that is missing or another one.
    """
    if rerun.missing:
        raise ArchiveError(f"{', '.join(rerun.missing)} was left out of the bundle: give it with --model_args")
    given = dict(zip(rerun.words, rerun.words[1:], strict=False)).get("--model_args", "")
    name = parse_args(given).get("vectors")
    if not (name and manifest.vectors_sha256):
        return
    file = Path(str(name))
    if not file.is_file():
        raise ArchiveError(f"the vector file {file} is not here; name it with --model_args vectors=FILE")
    if (digest := hash_file(file)) != manifest.vectors_sha256:
        raise ArchiveError(
            f"{file} is another vector file: its SHA-256 is {digest[:16]}, the bundle's run had "
            f"{manifest.vectors_sha256[:16]}"
        )


def _options(words: Sequence[str]) -> dict[str, str]:
    """The options of a command, "" where no value follows."""
    if not words or words[0] != "lm_eval":
        raise ArchiveError(
            f"the bundle's command is no evaluation: it begins with {words[0] if words else 'nothing'!r}"
        )
    options: dict[str, str] = {}
    rest = iter(words[1:])
    for word in rest:
        if word not in _OPTIONS:
            raise ArchiveError(f"the bundle's command has {word[:80]!r}; allowed: {', '.join(_OPTIONS)}")
        options[word] = next(rest, "") if _OPTIONS[word] else ""
    return options
