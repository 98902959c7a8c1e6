"""OpenAssistant conversations, and lists of instructions in the format of Alpaca, as rows to train on.

OpenAssistant (Köpf et al., 2023) publishes trees of messages, as one JSON object per tree (`*.trees.jsonl.gz`) or as a table
of messages (`*.messages.jsonl.gz`). Of a tree we take the first prompt and the best-ranked reply of the assistant; with
`multi_turn`, every further turn along the best-ranked replies too, each with the conversation before it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext import languages
from lm_eval_ext.data import instruct, sources
from lm_eval_ext.data.instruct import Instruction, Report
from lm_eval_ext.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Name and file in the mirror; pinned in the registry to a revision of the hub and a hash.
RELEASES = {
    "oasst1": "instruct/2023-04-12_oasst_ready.trees.jsonl.gz",
    "oasst2": "instruct/2023-11-05_oasst2_ready.trees.jsonl.gz",
}
READY = "ready_for_export"


def load(
    source: str, language: str = "", multi_turn: bool = False, state: str = READY
) -> tuple[list[Instruction], Report]:
    """Conversations in all seven languages, unless the file is in one.

    Args:
        source: a name in `RELEASES`, or a file of trees, messages, or a list of `instruction`, `input`, `output`.
        language: that of a file whose rows name none.
        multi_turn: whether to take the turns after the first reply too.
        state: of the trees to take; others are counted. Empty for all.

    Raises:
        DataError: the file is missing, damaged, or of an unknown format, needs `language`, or no row is left.
    """
    file = sources.path(RELEASES[source]) if source in RELEASES else Path(source)
    rows = _objects(file)
    report = Report()
    name = source if source in RELEASES else file.name
    if _has(rows, "instruction", "output"):
        instructions = list(_alpaca(rows, name, language, multi_turn, report))
    elif _has(rows, "message_tree_id", "prompt"):
        instructions = list(_conversations(rows, name, multi_turn, state, report))
    elif _has(rows, "message_id", "parent_id", "role", "text"):
        instructions = list(_conversations(_trees(rows, file), name, multi_turn, state, report))
    else:
        keys = ", ".join(rows[0]) if rows else "nothing"
        raise DataError(
            f"{file}: its first row has {keys}; known are rows of this package (id, language, prompt, response), trees of\n"
            "OpenAssistant (message_tree_id, prompt), its messages (message_id, parent_id, role, text), and lists of\n"
            "instruction, input, output"
        )
    report.counted(instructions)
    if not instructions:
        raise DataError(
            f"{file}: no rows are left. Of its {len(rows)} rows:\n{report}\n"
            "Trees of another state are taken with --tree-state STATE"
        )
    return instructions, report


def _objects(file: Path) -> list[dict[str, Any]]:
    if file.suffix != ".json":
        return sources.read_jsonl(file)
    rows = sources.read_json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file} must be a list of objects")
    return rows


def _has(rows: list[dict[str, Any]], *keys: str) -> bool:
    return bool(rows) and all(key in rows[0] for key in keys)


def _alpaca(
    rows: list[dict[str, Any]], name: str, language: str, multi_turn: bool, report: Report
) -> Iterator[Instruction]:
    if not language:
        raise DataError(f"{name} does not say which language it is in: give it with --lang")
    code = languages.get(language).code
    for number, row in enumerate(rows, start=1):
        before = row.get("history") or []
        if before and not multi_turn:
            report.leave_out("later turn of a conversation", code)
            continue
        try:
            turns = [turn for user, assistant in before for turn in (["user", user], ["assistant", assistant])]
            prompt = "\n".join(text for text in (row["instruction"], row.get("input")) if text)
            values = {"prompt": prompt, "response": row["output"], "history": turns}
            yield instruct.parse(Instruction, {"id": str(number), "language": code, "source": name, **values})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{name}, row {number}: {error}") from None


def _trees(messages: list[dict[str, Any]], file: Path) -> list[dict[str, Any]]:
    """The trees of a table of messages."""
    replies: dict[Any, list[dict[str, Any]]] = {}
    ids = {message.get("message_id") for message in messages}
    if orphans := sum(message.get("parent_id") not in ids | {None} for message in messages):
        raise DataError(f"{file}: {orphans} messages reply to one that is not in the file: it may be truncated")
    for message in messages:
        message["replies"] = replies.setdefault(message.get("message_id"), [])
        replies.setdefault(message.get("parent_id"), []).append(message)
    return [
        {"message_tree_id": root.get("message_tree_id"), "tree_state": root.get("tree_state"), "prompt": root}
        for root in replies.get(None, [])
    ]


def _conversations(
    trees: Iterable[dict[str, Any]], name: str, multi_turn: bool, state: str, report: Report
) -> Iterator[Instruction]:
    for number, tree in enumerate(trees, start=1):
        try:
            yield from _conversation(tree, name, multi_turn, state, report)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{name}, tree {number} ({tree.get('message_tree_id')}): damaged ({error!r})") from None


def _conversation(
    tree: dict[str, Any], name: str, multi_turn: bool, state: str, report: Report
) -> Iterator[Instruction]:
    prompt = tree["prompt"]
    code = languages.normalise(prompt["lang"])
    if code not in languages.LANGUAGES:
        report.leave_out("in another language than the seven", "others")
        return
    if state and tree["tree_state"] != state:
        report.leave_out(f"tree is {tree['tree_state']}, not {state}", code)
        return
    turns: list[list[str]] = []
    while prompt is not None:
        if not _usable(prompt):
            report.leave_out("prompt deleted, rejected or empty", code)
            return
        reply = _best(prompt["replies"], code)
        if reply is None:
            if not turns:
                report.leave_out("no usable reply in the same language", code)
            return
        row = {"id": f"{tree['message_tree_id']}/{len(turns) // 2 + 1}", "language": code, "source": name}
        yield instruct.parse(
            Instruction, {**row, "prompt": prompt["text"], "response": reply["text"], "history": turns}
        )
        turns = [*turns, ["user", prompt["text"]], ["assistant", reply["text"]]]
        prompt = _best(reply["replies"], code) if multi_turn else None


def _best(replies: list[dict[str, Any]], code: str) -> dict[str, Any] | None:
    """The usable reply in a language with the best rank; unranked replies come last."""
    usable = [reply for reply in replies if _usable(reply) and languages.normalise(reply["lang"]) == code]
    return min(usable, key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0), default=None)


def _usable(message: dict[str, Any]) -> bool:
    return not message.get("deleted") and message.get("review_result") is not False and bool(message["text"].strip())
