"""What models are asked to continue: the first half of a text, or an instruction."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from lm_eval_ext import harness
from lm_eval_ext.data import instruct

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The first half of each text.
OPENINGS = "texts"


def load_prompts(
    source: str, texts: Mapping[str, Mapping[str, str]], languages: Sequence[str], tokenizer: Any
) -> dict[str, dict[str, str]]:
    """Prompts by language and id.

    Args:
        source: `texts`, `mini` (the instructions shipped with the package) or a JSONL file of instructions, of which the
            held-out ones are taken; they are asked in the chat template where the tokenizer has one.
        texts: whose first halves are continued.
        languages: of the instructions.
        tokenizer: of the model.

    Raises:
        DataError: a file that is missing or damaged, or a language without rows.
    """
    if source == OPENINGS:
        return {code: {key: opening(text) for key, text in of_code.items()} for code, of_code in texts.items()}
    rows, _ = instruct.load(source, languages, "held_out")
    prompts: dict[str, dict[str, str]] = defaultdict(dict)
    template = harness.chat_template(tokenizer) if getattr(tokenizer, "chat_template", None) else None
    for row in rows:
        asked = row.prompt if template is None else template([{"role": "user", "content": row.prompt}])
        prompts[row.language][row.id] = asked
    return dict(prompts)


def opening(text: str) -> str:
    """The first half of a text: of its words, or of its characters where it has few spaces."""
    words = text.split()
    if len(words) * 12 < len(text):
        return text[: (len(text) + 1) // 2]
    return " ".join(words[: (len(words) + 1) // 2])
