"""`tune`: vectors, layers, strengths and tokens are chosen on a development split, and confirmed on the test split."""

from __future__ import annotations

import shutil
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from lm_eval_ext.console import notes
from lm_eval_ext.data import axes
from lm_eval_ext.errors import UserError
from lm_eval_ext.fingerprints import hash_json, weights_fingerprint
from lm_eval_ext.steering.reuse import SeenQuestions
from lm_eval_ext.steering.vectors import VectorSet
from lm_eval_ext.sweep.cells import Cells
from lm_eval_ext.sweep.grid import Grid
from lm_eval_ext.sweep.loading import load_backend, rendering
from lm_eval_ext.sweep.processes import Processes
from lm_eval_ext.sweep.summary import PROBABILITY
from lm_eval_ext.tune.candidates import Candidate, candidates, extract, families_of, final, of_files
from lm_eval_ext.tune.choice import AXES, Chooser
from lm_eval_ext.tune.confirmation import Confirmation, confirm
from lm_eval_ext.tune.objective import Objective
from lm_eval_ext.tune.result import TuneResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_ext.backends.base import SteeredBackend
    from lm_eval_ext.data.task_questions import Rendering
    from lm_eval_ext.side_effects.panel import Panel
    from lm_eval_ext.steering.plan import Plan
    from lm_eval_ext.sweep.questions import Questions
    from lm_eval_ext.tune.settings import Settings

#: Most tokens of a generation for side effects.
_NEW_TOKENS = 32

#: The metrics by which a plan can be chosen.
METRICS = (PROBABILITY, "acc")


class Tune:
    """A choice. Everything that can be checked without the model's weights is checked before they are loaded.

    Args:
        settings: of the choice.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.objective = Objective(settings.weight, settings.max_loss)

    def run(self) -> TuneResult:
        """Extract, choose, confirm, and write the results.

        Raises:
            UserError: settings, tasks, vectors, pairs or a model that cannot be used; development tasks that are test
                splits.
        """
        started = time.monotonic()
        self._check()
        settings, console = self.settings, notes()
        console.print(
            f"{len(self.candidates)} kinds of vectors; choosing on {len(self.dev.questions)} questions in "
            f"{', '.join(self.dev.languages)}"
        )
        if settings.restart:
            shutil.rmtree(settings.out / "cells", ignore_errors=True)
        model = self._load()
        vectors = self._vectors(model)
        self._check_confirmable(vectors)
        with Processes() as processes:
            if processes.count > 1:
                raise UserError("tune runs in one process: start it without accelerate launch")
            cells = Cells(model, self.dev, vectors, settings.out / "cells" / "choice", processes, console)
            chooser = Chooser(settings, self.objective, self.candidates, cells, vectors)
            chosen, outcome = chooser.choose()
            by_name = {candidate.name: candidate for candidate in self.candidates}
            with_controls = self._with_shuffled(model, vectors, [chosen, *chooser.best_of_each.values()], by_name)
            final_vectors, plan = final(with_controls, chosen, by_name)
            settings.out.mkdir(parents=True, exist_ok=True)
            final_vectors.save(settings.out / "vectors.safetensors")
            final_vectors = VectorSet.load(settings.out / "vectors.safetensors")
            confirmation = self._confirm(model, final_vectors, [plan], processes)
            compared = self._compare(model, with_controls, chooser.best_of_each, processes)
            side_effects = self._side_effects(model, final_vectors, plan)
        used = {term.kind for term in chosen.interventions}
        result = TuneResult(
            settings=settings,
            plan=plan,
            vectors=final_vectors,
            chosen_from={candidate.name: candidate.record() for candidate in self.candidates},
            made_by={by_name[name].kind: by_name[name].record() for name in sorted(used)},
            outcome=outcome,
            objective=self.objective,
            chosen_on=self._chosen_on(),
            tried=pd.DataFrame(chooser.tried),
            cells=chooser.n_cells,
            confirmation=confirmation,
            compared=compared,
            side_effects=side_effects,
            seconds=time.monotonic() - started,
            dtype=model.get_model_info().get("dtype", {}),
        )
        result.write()
        return result

    # What is asked and tried -----------------------------------------------------------------------------------------

    @cached_property
    def rendering(self) -> Rendering:
        """How questions are asked."""
        settings = self.settings
        return rendering(
            settings.model,
            num_fewshot=settings.num_fewshot,
            apply_chat_template=settings.apply_chat_template,
            system_instruction=settings.system_instruction,
        )

    def questions(self, tasks: Sequence[str]) -> Questions:
        """The questions of some tasks, as the settings ask them."""
        from lm_eval_ext.sweep.questions import Questions

        settings = self.settings
        return Questions(
            tasks,
            limit=settings.limit,
            num_fewshot=settings.num_fewshot,
            languages=settings.languages,
            with_prior=False,
            default_language=settings.lang,
            include_path=settings.include_path,
            rendering=self.rendering,
        )

    @cached_property
    def dev(self) -> Questions:
        """The questions on which the plan is chosen."""
        return self.questions(self.settings.dev_tasks)

    @cached_property
    def test(self) -> Questions | None:
        """The questions on which it is confirmed."""
        return self.questions(self.settings.test_tasks) if self.settings.test_tasks else None

    @cached_property
    def _files(self) -> tuple[list[Candidate], dict[tuple[str, str], Any], list[VectorSet]]:
        files = [VectorSet.load(path) for path in self.settings.vectors]
        return (*of_files(files), files)

    @cached_property
    def candidates(self) -> list[Candidate]:
        """The kinds of vectors that are tried."""
        made = candidates(self.settings, self._families(self.dev), self.rendering.tokenizer)
        return [*made, *self._files[0]]

    def _families(self, questions: Questions) -> frozenset[str]:
        tasks = dict.fromkeys(question.task for question in questions.questions)
        return families_of(axes.metadata(task, questions.metadata(task)) for task in tasks)

    def _chosen_on(self) -> dict[str, str]:
        """The families on which the plan is chosen: the first of each axis under its name, the others numbered."""
        names: dict[str, str] = {}
        for question in self.dev.questions:
            if question.family not in names.values():
                key, number = str(question.axis), 1
                while key in names:
                    number += 1
                    key = f"{question.axis}_{number}"
                names[key] = question.family
        return names

    def _check(self) -> None:
        settings, errors = self.settings, list[str]()
        if settings.metric not in METRICS:
            errors.append(f"--metric {settings.metric!r} is unknown, valid: {', '.join(METRICS)}")
        if not settings.pairs and not settings.vectors:
            errors.append("nothing to choose from: give --pairs KIND=SOURCE with --estimator, or --vectors FILE")
        splits = {question.task: question.split for question in self.dev.questions}
        if on_test := [task for task, split in splits.items() if split != "dev"]:
            errors.append(
                f"a plan is chosen on development questions only, and {', '.join(on_test[:4])}"
                f"{f' and {len(on_test) - 4} more' if len(on_test) > 4 else ''} ask those of the test split: choosing on "
                "them would make their results worthless. Choose on tasks such as blend_decon_dev_cloze and bmlama_dev, or "
                "on tasks of your own whose metadata says split: dev"
            )
        if not errors and (missing := [q.task for q in self.dev.questions if q.gold is None]):
            errors.append(f"the task {missing[0]} names no right option: nothing can be chosen on it")
        if not errors and {question.axis for question in self.dev.questions}.isdisjoint(AXES):
            errors.append(
                f"{', '.join(settings.dev_tasks)}: none is on the transfer or the localization axis; say axis: in their "
                "metadata"
            )
        if self.test and not errors and (common := self._families(self.test) & self._families(self.dev)):
            errors.append(
                f"--test: {', '.join(sorted(common))} is what the plan is chosen on; confirm it on another split"
            )
        if errors:
            raise UserError("\n".join(errors))
        for candidate in self.candidates:
            if self.test and candidate.pairs:
                self._check_unseen(candidate)

    def _check_unseen(self, candidate: Candidate) -> None:
        """Refuse vectors that are made from test questions, before they are made."""
        assert self.test
        seen = {family for s in candidate.pairs for family in s.made_from.get("families", ())}
        if common := seen & self._families(self.test):
            raise UserError(
                f"--pairs {candidate.kind}={candidate.source}: its vectors would be made from {', '.join(sorted(common))}, "
                "on which the plan is to be confirmed; take pairs of a development split"
            )

    def _check_confirmable(self, vectors: VectorSet) -> None:
        """Refuse test questions whose prompts the vectors were made from, before anything is chosen."""
        if self.test is None:
            return
        seen = SeenQuestions(vectors, vectors.kinds, self._chosen_on().values())
        for task in dict.fromkeys(question.task for question in self.test.questions):
            if problem := seen.of_task(task, self.test.metadata(task), self.test.prompts(task)):
                raise UserError(f"--test: {problem}; a plan cannot be confirmed there")

    # The model and its vectors ---------------------------------------------------------------------------------------

    def _load(self) -> SteeredBackend:
        settings = self.settings
        return load_backend(
            *(settings.model, settings.model_args, settings.device),
            refused=("vectors", "steer", "positions"),
            because="--model_args {}: tune has --vectors, --positions and chooses the plan",
            lang=settings.lang,
        )

    @property
    def _name(self) -> str:
        from lm_eval_ext.models import embedded

        return self.settings.model or embedded.NAME

    def _vectors(self, model: SteeredBackend) -> VectorSet:
        """The vectors of all candidates; extracted once, and kept among the cells."""
        _, entries, files = self._files
        for vectors in files:
            vectors.check_model(self._name, model.model.config)
        made = [candidate for candidate in self.candidates if candidate.pairs]
        if not made:
            return VectorSet(files[0].model, entries)
        extracted = self._extracted(model, made, self.settings.layers)
        return VectorSet(extracted.model, {**extracted.vectors, **entries}, created_by=extracted.created_by)

    def _extracted(self, model: SteeredBackend, made: list[Candidate], layers: str, shuffled: int = 0) -> VectorSet:
        """The vectors of some candidates, of the file that keeps them where there is one."""
        content = {
            "made": [{**c.record(), "name": c.name, "pairs": [s.sha256 for s in c.pairs]} for c in made],
            "layers": layers,
            "shuffled": shuffled,
            "model": weights_fingerprint(model.model),
            "dtype": str(model.model.dtype),
        }
        kept = self.settings.out / "cells" / f"vectors-{hash_json(content)[:16]}.safetensors"
        if kept.is_file():
            return VectorSet.load(kept)
        extracted = extract(*(model.model, model.tokenizer, made, layers, self._name), shuffled=shuffled)
        kept.parent.mkdir(parents=True, exist_ok=True)
        extracted.save(kept)
        return extracted

    def _with_shuffled(
        self, model: SteeredBackend, vectors: VectorSet, plans: Sequence[Plan], by_name: dict[str, Candidate]
    ) -> VectorSet:
        """The vectors, with fits of shuffled pairs for the kinds of some plans at their layers."""
        layers: dict[str, set[int]] = {}
        for term in (term for plan in plans for term in plan.interventions):
            if by_name[term.kind].pairs:
                layers.setdefault(term.kind, set()).update(term.layers(vectors.model.n_layers))
        if not layers or not self.settings.n_shuffled or not self.test:
            return vectors
        by_layers: dict[str, list[Candidate]] = {}  # those of the same layers read their texts once
        for name, numbers in layers.items():
            by_layers.setdefault(",".join(map(str, sorted(numbers))), []).append(by_name[name])
        entries = dict(vectors.vectors)
        for text, used in by_layers.items():
            entries |= self._extracted(model, used, text, self.settings.n_shuffled).vectors
        return VectorSet(vectors.model, entries, created_by=vectors.created_by)

    def _compare(
        self, model: SteeredBackend, vectors: VectorSet, plans: dict[str, Plan], processes: Processes
    ) -> Confirmation | None:
        """The best plan of each kind of vectors on the test split."""
        return self._confirm(model, vectors, list(plans.values()), processes, "compared-") if plans else None

    def _confirm(
        self, model: SteeredBackend, vectors: VectorSet, plans: Sequence[Plan], processes: Processes, prefix: str = ""
    ) -> Confirmation | None:
        if self.test is None:
            return None
        settings = self.settings
        named = self.questions(settings.named_tasks) if settings.named_tasks else None
        grid = Grid(
            *((), (), (), ()),
            n_random=settings.n_random,
            n_shuffled={kind: vectors.n_shuffled(kind) for kind in vectors.kinds},
        )
        return confirm(
            *(model, self.test, named, vectors, plans, grid),
            folder=settings.out / "cells",
            prefix=prefix,
            processes=processes,
            resamples=settings.resamples,
        )

    def _side_effects(self, model: SteeredBackend, vectors: VectorSet, plan: Plan) -> Panel | None:
        """What the chosen plan changes besides its aim, on parallel texts and their continuations."""
        settings = self.settings
        if not settings.side_effects:
            return None
        from lm_eval_ext.console import Progress
        from lm_eval_ext.data.parallel import sentences
        from lm_eval_ext.side_effects.measuring import measure
        from lm_eval_ext.side_effects.panel import Panel
        from lm_eval_ext.side_effects.prompts import OPENINGS, load_prompts
        from lm_eval_ext.steering.table import SteeringTable

        source = sentences(settings.side_effects, list(settings.languages), settings.n_texts)
        texts = {code: of_code for code, of_code in source.by_id().items() if code in settings.languages}
        prompts = load_prompts(OPENINGS, texts, settings.languages, model.tokenizer)
        table = SteeringTable.build(plan, vectors, vectors.model.n_layers)
        with Progress(2 * sum(map(len, texts.values())), "Side effects", "text") as bar:
            frame = measure(
                *(model.model, model.tokenizer, table, texts),
                prompts=prompts,
                new_tokens=_NEW_TOKENS,
                progress=bar.update,
            )
        return Panel(
            frame,
            model=self._name,
            plan=str(plan),
            baseline=f"{self._name}, unsteered",
            settings={
                "texts": source.name,
                "prompts": OPENINGS,
                "new_tokens": _NEW_TOKENS,
                "positions": "the plan's",
            },
        )
