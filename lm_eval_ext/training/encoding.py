"""Instructions and tuples as tokens.

A conversation is written with the tokenizer's chat template where it has one, else with `TEMPLATE`, our default for base
models. Prompt and response are tokenised apart, so that the border between them is the one that generation meets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_eval_ext.errors import DataError, TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lm_eval_ext.data.instruct import Instruction, Tuple

#: How base models are asked (our default). The response follows after a space and ends with the end-of-sequence token.
TEMPLATE = "User: {prompt}\nAssistant:"


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of a response to it."""

    prompt: list[int]
    response: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class ParallelExample:
    """The four examples of a tuple: the response in one language to the prompt in another, as `losses.Likelihoods`."""

    en_en: Example
    xx_en: Example
    xx_xx: Example
    en_xx: Example

    def __len__(self) -> int:
        return max(map(len, self.all))

    @property
    def all(self) -> tuple[Example, Example, Example, Example]:
        """The four of them, in the order of `losses.Likelihoods`."""
        return self.en_en, self.xx_en, self.xx_xx, self.en_xx


class Encoder:
    """Writes prompts and responses as a model is to see them.

    Args:
        tokenizer: the model's.
        template: text with `{prompt}` in it, instead of the tokenizer's chat template and of `TEMPLATE`.

    Raises:
        TrainingError: the template has no `{prompt}`, or the tokenizer has no end-of-sequence token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str = "") -> None:
        if template and "{prompt}" not in template:
            raise TrainingError(f"--template {template!r} has no {{prompt}} in it; ours is {TEMPLATE!r}")
        if tokenizer.eos_token_id is None:
            raise TrainingError("the tokenizer has no end-of-sequence token, which ends every response: set eos_token")
        self._tokenizer = tokenizer
        self._chat = not template and bool(tokenizer.chat_template)
        self.template = "the tokenizer's chat template" if self._chat else template or TEMPLATE

    def instruction(self, row: Instruction) -> Example:
        """A row of instruction data.

        Raises:
            DataError: the tokenizer makes no token of the response.
        """
        return self._example(row.prompt, row.response, row.history, f"{row.language} {row.id}")

    def parallel(self, row: Tuple) -> ParallelExample:
        """A parallel tuple.

        Raises:
            DataError: the tokenizer makes no token of a response.
        """
        where = f"{row.language} {row.id}"
        return ParallelExample(
            en_en=self._example(row.x_en, row.y_en, (), where),
            xx_en=self._example(row.x_en, row.y_xx, (), where),
            xx_xx=self._example(row.x_xx, row.y_xx, (), where),
            en_xx=self._example(row.x_xx, row.y_en, (), where),
        )

    def _example(self, prompt: str, response: str, history: tuple[tuple[str, str], ...], where: str) -> Example:
        ids = self._chat_ids(prompt, response, history) if self._chat else self._plain_ids(prompt, response, history)
        if not ids.response or not ids.prompt:
            raise DataError(f"row {where}: the tokenizer makes no token of the prompt or the response")
        return ids

    def _plain_ids(self, prompt: str, response: str, history: tuple[tuple[str, str], ...]) -> Example:
        eos: int = self._tokenizer.eos_token_id
        turns = [text for _, text in history]
        said = [f"{self._ask(user)} {answer}\n" for user, answer in zip(turns[::2], turns[1::2], strict=True)]
        begun: list[int] = self._tokenizer("".join([*said, self._ask(prompt)]))["input_ids"]
        if begun and begun[-1] == eos:  # some tokenizers end every text
            begun.pop()
        return Example(begun, [*self._tokens(f" {response}"), eos])

    def _ask(self, prompt: str) -> str:
        return self.template.replace("{prompt}", prompt)

    def _chat_ids(self, prompt: str, response: str, history: tuple[tuple[str, str], ...]) -> Example:
        messages = [{"role": role, "content": text} for role, text in (*history, ("user", prompt))]
        begun = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        messages.append({"role": "assistant", "content": response})
        full = self._tokenizer.apply_chat_template(messages, tokenize=False)
        if not full.startswith(begun):
            raise TrainingError(
                "the tokenizer's chat template writes a prompt otherwise once it is answered: give --template with "
                f"{{prompt}} in it, such as {TEMPLATE!r}"
            )
        return Example(self._tokens(begun), self._tokens(full[len(begun) :]))

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
