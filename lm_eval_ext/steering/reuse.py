"""Whether a task asks what vectors were made from, or what a plan was chosen on: its result tells nothing of new ones."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from lm_eval_ext.data import axes
from lm_eval_ext.data.pairs import prompt_hash
from lm_eval_ext.data.task_pairs import base_families, base_family

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from lm_eval_ext.steering.plan import Plan
    from lm_eval_ext.steering.vectors import VectorSet


class SeenQuestions:
    """The questions that a plan and its vectors have seen.

    Args:
        vectors: say what they were made from.
        kinds: of the vectors that are used.
        chosen_on: the families that the plan was chosen on, as the `plan.yaml` of a sweep has them.
    """

    def __init__(self, vectors: VectorSet | None, kinds: Collection[str], chosen_on: Iterable[str] = ()) -> None:
        self._families: dict[str, str] = {base_family(name): f"the plan was chosen on {name}" for name in chosen_on}
        self._prompts: dict[str, str] = {}
        for (kind, _), entry in vectors.vectors.items() if vectors else ():
            info = entry.info
            if kind in kinds and info.made_from:
                why = f"the vectors of kind {kind} were made from {info.source}"
                self._families |= {str(family): why for family in info.made_from.get("families", ())}
                self._prompts |= {str(prompt): why for prompt in info.made_from.get("prompts", ())}

    @classmethod
    def of_plan(cls, plan: Plan, vectors: VectorSet | None) -> SeenQuestions:
        """Those of the kinds of a plan, and those that it was chosen on."""
        return cls(vectors, {term.kind for term in plan.interventions}, plan.chosen_on)

    def __bool__(self) -> bool:
        return bool(self._families or self._prompts)

    def of_task(self, task: str, metadata: Mapping[str, Any], prompts: Iterable[str] = ()) -> str | None:
        """Why a task asks seen questions; None where it does not, as far as is recorded.

        Args:
            task: its name.
            metadata: of its YAML.
            prompts: of its questions, one for each. One that several questions share, whose options differ, tells none of
                them ("Which name is mine?").
        """
        families = base_families(axes.metadata(task, metadata))
        if reasons := [self._families[family] for family in sorted(families) if family in self._families]:
            return f"task {task} asks questions that were seen: {reasons[0]}"
        if not self._prompts:
            return None
        times = Counter(prompts)
        seen = {prompt for prompt, n in times.items() if n == 1 and prompt_hash(prompt) in self._prompts}
        if not seen:
            return None
        return f"task {task} has {len(seen)} prompts that were seen: {self._prompts[prompt_hash(next(iter(seen)))]}"


#: What to do about it.
HOW_TO_GO_ON = (
    "A result on them says nothing of other questions: evaluate a task of another split (of blend_decon_dev that is "
    "blend_decon), extract from other pairs, or pass allow_same_split=True in --model_args to evaluate them all the same"
)
