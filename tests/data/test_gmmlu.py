"""Global-MMLU from a mirror in the true schema and from the hub, with the harness's own prompt."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import lm_eval.tasks
import pytest
from datasets import Dataset
from datasets.exceptions import DatasetNotFoundError
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from support import fake_hub, gmmlu_mirror

from lm_eval_ext.data import gmmlu, pairs
from lm_eval_ext.errors import DataError, LanguageError
from lm_eval_ext.paths import tasks_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

HARNESS_TEMPLATE = Path(lm_eval.tasks.__file__).parent / "global_mmlu/full/en/_en_template_yaml"


@pytest.fixture(scope="session")
def full_mirror(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gmmlu")
    gmmlu_mirror.write(shared_data / "mmlu", folder)
    return folder


@pytest.fixture
def mirror(full_mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(full_mirror))
    return full_mirror


@pytest.fixture(scope="session")
def task_manager() -> TaskManager:
    return TaskManager(include_path=str(tasks_dir()), include_defaults=False)


def row(**changes: object) -> dict[str, object]:
    texts = dict.fromkeys(gmmlu.COLUMNS, "[]")
    options = {f"option_{letter}": letter * 2 for letter in "abcd"}
    known = {"sample_id": "anatomy/test/0", "subject": "anatomy", "question": "Where?", "answer": "C"}
    return {**texts, **options, **known, "cultural_sensitivity_label": "-", "is_annotated": False, **changes}


def write(mirror: Path, *rows: dict[str, object], split: str = "test") -> Path:
    file = mirror / "gmmlu" / "ko" / f"{split}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(item) + "\n" for item in rows), "utf-8")
    return file


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(tmp_path))
    return tmp_path


# --- documents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["en", "ar"])
def test_the_full_test_split_with_all_its_columns(mirror: Path, language: str) -> None:
    documents = gmmlu.load(language)["test"]
    assert len(documents) == 14_042
    assert set(gmmlu.COLUMNS) < set(documents.column_names)
    assert set(documents["language"]) == {language}
    assert len(set(documents["subject"])) == 57
    first = documents[0]
    assert first["options"] == [first["option_a"], first["option_b"], first["option_c"], first["option_d"]]
    assert "ABCD"[first["gold"]] == first["answer"]
    assert first["id"] == first["sample_id"]


@pytest.mark.parametrize(("subset", "size"), [("CA", 2_058), ("CS", 792)])
def test_culturally_agnostic_and_sensitive_subsets(mirror: Path, subset: str, size: int) -> None:
    documents = gmmlu.load("ar", subset=subset)["test"]
    assert len(documents) == size
    assert set(documents["cultural_sensitivity_label"]) == {subset}


def test_the_upstream_file_itself_is_read(own: Path, shared_data: Path) -> None:
    target = own / "gmmlu" / "en" / "dev.jsonl"
    target.parent.mkdir(parents=True)
    shutil.copy(shared_data / "mmlu" / "global_mmlu_dev_en.jsonl", target)
    rows = gmmlu.documents("en", "dev")
    assert len(rows) == 285
    assert rows[0]["options"] == ["0", "1", "2", "3"]


def test_a_parquet_mirror_says_the_same(own: Path) -> None:
    rows = [row(question="Πού;"), row(sample_id="anatomy/test/1", answer="A")]
    from_jsonl = (write(own, *rows), gmmlu.load("ko")["test"].to_list())[1]
    (own / "gmmlu/ko/test.jsonl").unlink()
    Dataset.from_list(rows).to_parquet(own / "gmmlu/ko/test.parquet")
    assert gmmlu.load("ko")["test"].to_list() == from_jsonl


def test_a_short_mirror_is_used_and_said_to_be_short(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(own, row())
    assert len(gmmlu.load("ko")["test"]) == 1
    assert "has 1 rows; the full release has 14042" in caplog.text


# --- the task ---------------------------------------------------------------------------------------------------------


def test_prompt_choices_and_target_are_those_of_the_harness(mirror: Path, task_manager: TaskManager) -> None:
    ours = task_manager.load(["gmmlu_ar"])["tasks"]["gmmlu_ar"]
    template = load_yaml(HARNESS_TEMPLATE)
    del template["dataset_path"], template["dataset_name"], template["fewshot_split"], template["fewshot_config"]
    documents = gmmlu.load("ar")["test"].select(range(0, 14_042, 200))
    theirs = ConfigurableTask(config={**template, "task": "theirs", "custom_dataset": lambda **_: {"test": documents}})
    for document in documents:
        for part in ("doc_to_text", "doc_to_choice", "doc_to_target"):
            assert getattr(ours, part)(document) == getattr(theirs, part)(document)
        assert ours.fewshot_context(document, 0) == theirs.fewshot_context(document, 0)
        requests = [
            [request.args for request in task.construct_requests(document, "context")] for task in (ours, theirs)
        ]
        assert requests[0] == requests[1]


def test_examples_are_dev_questions_of_the_same_subject_as_in_the_harness(
    mirror: Path, task_manager: TaskManager
) -> None:
    task = task_manager.load(["gmmlu_en"])["tasks"]["gmmlu_en"]
    dev = gmmlu.documents("en", "dev")
    for document in list(task.test_docs().select([0, 5_000, 14_041])):
        subject = [example for example in dev if example["subject"] == document["subject"]]
        # What lm_eval/tasks/global_mmlu does: the first n of a dev split that holds one subject.
        expected = "".join(
            f"{task.doc_to_text(example)} {example['answer']}\n\n" for example in subject[:5]
        ) + task.doc_to_text(document)
        assert task.fewshot_context(document, 5) == expected


def test_zero_shot_needs_no_dev_split(own: Path, task_manager: TaskManager) -> None:
    write(own, row())
    task = task_manager.load(["gmmlu_ko"])["tasks"]["gmmlu_ko"]
    assert task.config.num_fewshot is None  # so that --num_fewshot is obeyed
    assert task.fewshot_context(task.test_docs()[0], 0).startswith("Where?\nA. aa\n")


def test_cloze_examples_end_with_the_text_of_the_answer(own: Path, task_manager: TaskManager) -> None:
    write(own, row())
    write(own, row(sample_id="anatomy/dev/0"), split="dev")
    task = task_manager.load(["gmmlu_ko_cloze"])["tasks"]["gmmlu_ko_cloze"]
    assert task.fewshot_context(task.test_docs()[0], 1) == "질문: Where?\n답: cc\n\n질문: Where?\n답:"


def test_the_languages_are_those_of_the_harness() -> None:
    full = HARNESS_TEMPLATE.parents[1]
    assert sorted(folder.name for folder in full.iterdir() if folder.is_dir()) == list(gmmlu.LANGUAGES)
    assert len(gmmlu.LANGUAGES) == 42


def test_czech_is_no_culturally_sensitive_subset(own: Path, task_manager: TaskManager) -> None:
    czech = own / "gmmlu" / "cs" / "test.jsonl"
    czech.parent.mkdir(parents=True)
    rows = [row(question="Kde?"), row(question="Kdy?", cultural_sensitivity_label="CS", is_annotated=True)]
    czech.write_text("".join(json.dumps(item) + "\n" for item in rows), "utf-8")
    tasks = task_manager.load(["gmmlu_ces", "gmmlu_cs_ces_cloze"])["tasks"]
    assert tasks["gmmlu_ces"].test_docs()["question"] == ["Kde?", "Kdy?"]
    (document,) = tasks["gmmlu_cs_ces_cloze"].test_docs()
    assert document["language"] == "cs"
    assert tasks["gmmlu_cs_ces_cloze"].fewshot_context(document, 0) == "Otázka: Kdy?\nOdpověď:"


def test_any_language_is_steered_by_the_code_in_its_documents(own: Path, task_manager: TaskManager) -> None:
    (own / "gmmlu" / "fil").mkdir(parents=True)
    (own / "gmmlu" / "fil" / "test.jsonl").write_text(json.dumps(row()), "utf-8")
    task = task_manager.load(["gmmlu_fil"])["tasks"]["gmmlu_fil"]
    assert task.test_docs()["language"] == ["fil"]
    assert task.config.metadata["language"] == "fil"


def test_dev_questions_are_pairs_for_the_en_vector_but_those_that_are_test_questions_too(mirror: Path) -> None:
    (found,) = pairs.load_pairs("en", "gmmlu", ["en", "ar"])
    test, dev = set(gmmlu.load("en")["test"]["question"]), gmmlu.documents("en", "dev")
    assert found.language == "ar"
    assert [pair.positive for pair in found.pairs] == [q for row in dev if (q := row["question"].strip()) not in test]
    assert len(dev) == 285 > len(found.pairs) >= 275
    assert all(any("\u0600" <= letter <= "\u06ff" for letter in pair.negative) for pair in found.pairs[:20])


def test_the_dev_task_asks_what_is_not_in_the_test_split(mirror: Path, task_manager: TaskManager) -> None:
    task = task_manager.load(["gmmlu_dev_ar"])["tasks"]["gmmlu_dev_ar"]
    asked, tested = task.test_docs(), gmmlu.load("ar")["test"]
    assert 275 <= len(asked) < 285
    assert not set(asked["id"]) & set(tested["id"])
    english = {row["id"]: row["question"].strip() for row in gmmlu.documents("en", "dev")}
    assert not {english[name] for name in asked["id"]} & {q.strip() for q in gmmlu.load("en")["test"]["question"]}


def test_a_dev_question_is_no_example_of_itself(mirror: Path, task_manager: TaskManager) -> None:
    task = task_manager.load(["gmmlu_dev_en"])["tasks"]["gmmlu_dev_en"]
    for document in task.test_docs().select(range(0, 270, 30)):
        assert task.fewshot_context(document, 4).count(document["question"].strip()) == 1
    with pytest.raises(DataError, match=r"num_fewshot=5, .* has 4 other questions"):
        task.fewshot_context(task.test_docs()[0], 5)


def test_pairs_are_bound_by_the_sample_id(own: Path) -> None:
    write(own, row(sample_id="anatomy/dev/9"), row(sample_id="anatomy/dev/1", question="어디?"), split="dev")
    english = own / "gmmlu" / "en" / "dev.jsonl"
    english.parent.mkdir(parents=True)
    english.write_text(json.dumps(row(sample_id="anatomy/dev/1")), "utf-8")
    english.with_name("test.jsonl").write_text(json.dumps(row(question="When?")), "utf-8")
    assert gmmlu.pairs("ko") == [("Where?", "어디?")]
    english.write_text(json.dumps(row(sample_id="anatomy/dev/2")), "utf-8")
    with pytest.raises(DataError, match="no sample_id in common"):
        gmmlu.pairs("ko")


# --- the hub ----------------------------------------------------------------------------------------------------------

LOAD = """
import sys
from lm_eval_ext.data import gmmlu
from lm_eval_ext.errors import DataError
language, split, gmmlu.REVISION = sys.argv[1:]
try:
    rows = gmmlu.documents(language, split)
    print(len(rows), rows[0]["id"], rows[0]["language"], rows[0]["answer"])
except DataError as error:
    sys.exit(str(error))
"""
CARD = """---
configs:
- config_name: el
  data_files:
  - split: test
    path: el/test-*
  - split: dev
    path: el/dev-*
---
"""


class Hub:
    """A fake hub, and a fresh interpreter that takes it for the real one (the endpoint is read at import)."""

    def __init__(self, folder: Path, revision: str = gmmlu.REVISION, test: int = 14_042) -> None:
        self.folder, self.cache, self.revision = folder / "repo", folder / "cache", revision
        self.asked: list[str] = []
        (self.folder / "el").mkdir(parents=True)
        (self.folder / "README.md").write_text(CARD)
        for split, rows in (("test", test), ("dev", 285)):
            documents = [row(sample_id=f"anatomy/{split}/{number}") for number in range(rows)]
            Dataset.from_list(documents).to_parquet(self.folder / f"el/{split}-00000-of-00001.parquet")
        self.server = fake_hub.serve(gmmlu.REPO, revision, self.folder, self.asked)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def load(
        self, language: str, split: str, revision: str = gmmlu.REVISION, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if key != "LM_EVAL_EXT_DATA"}
        return subprocess.run(
            [sys.executable, "-c", LOAD, language, split, revision],
            env={**kept, "HF_ENDPOINT": self.url, "HF_HOME": str(self.cache), "HF_HUB_OFFLINE": "0", **environment},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=900,
        )

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("hub"))
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def other_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """One with another revision, which lacks most of the test split."""
    hub = Hub(tmp_path_factory.mktemp("other"), revision="1" * 40, test=3)
    yield hub
    hub.close()


def test_the_hub_is_asked_for_the_pinned_revision_and_offline_the_cache_answers(hub: Hub) -> None:
    done = hub.load("el", "test")
    assert done.stdout == "14042 anatomy/test/0 el C\n", done.stderr
    data = [path for path in hub.asked if path.endswith(".parquet")]
    assert data
    assert all(f"/resolve/{gmmlu.REVISION}/el/" in path for path in data)
    asked = len(hub.asked)
    offline = hub.load("el", "dev", HF_HUB_OFFLINE="1")
    assert offline.stdout == "285 anatomy/dev/0 el C\n", offline.stderr
    assert len(hub.asked) == asked


def test_another_revision_in_the_cache_is_not_taken_in_silence(other_hub: Hub) -> None:
    cached = other_hub.load("el", "dev", other_hub.revision)
    assert cached.stdout.startswith("285 "), cached.stderr
    offline = other_hub.load("el", "dev", HF_HUB_OFFLINE="1")
    assert offline.stdout == ""
    assert f"only revision {other_hub.revision} is in the cache" in offline.stderr


def test_offline_the_pinned_revision_is_taken_beside_a_newer_one(
    hub: Hub, other_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "cache", tmp_path)
    monkeypatch.setattr(other_hub, "cache", tmp_path)
    assert hub.load("el", "dev").stdout == "285 anatomy/dev/0 el C\n"
    newer = other_hub.load("el", "dev", other_hub.revision)
    assert newer.stdout.startswith("285 "), newer.stderr
    offline = hub.load("el", "dev", HF_HUB_OFFLINE="1")
    assert offline.stdout == "285 anatomy/dev/0 el C\n", offline.stderr


def test_a_split_of_another_size_is_refused(other_hub: Hub) -> None:
    short = other_hub.load("el", "test", other_hub.revision)
    assert short.returncode == 1
    assert "has 3 rows instead of 14042" in short.stderr


@pytest.mark.parametrize(
    ("language", "revision", "environment", "because"),
    [
        ("ko", gmmlu.REVISION, {}, "'ko' not found"),
        ("el", "2" * 40, {}, ""),
        ("el", gmmlu.REVISION, {"HF_HUB_OFFLINE": "1", "HF_HOME": "{empty}"}, ""),
    ],
    ids=["no such configuration", "no such revision", "offline and not cached"],
)
def test_what_the_hub_cannot_give_is_one_error(
    hub: Hub, tmp_path: Path, language: str, revision: str, environment: dict[str, str], because: str
) -> None:
    placed = {key: value.format(empty=tmp_path) for key, value in environment.items()}
    done = hub.load(language, "test", revision, **placed)
    assert (done.returncode, done.stdout) == (1, "")
    message = done.stderr[done.stderr.index("cannot load") :]
    wanted = (gmmlu.REPO, language, revision, placed.get("HF_ENDPOINT", hub.url), "LM_EVAL_EXT_DATA", because)
    assert all(part in message for part in wanted), message
    assert "Traceback" not in message
    assert len(message.splitlines()) <= 6


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionError("Couldn't reach 'CohereLabs/Global-MMLU' on the Hub"),
        RuntimeError("[Errno -2] Name or service not known"),
        DatasetNotFoundError("Dataset 'CohereLabs/Global-MMLU' is a gated dataset on the Hub"),
        OSError(28, "No space left on device"),
    ],
    ids=["unreachable", "no network", "gated", "disk full"],
)
def test_whatever_the_library_raises_becomes_one_error(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.delenv("LM_EVAL_EXT_DATA", raising=False)
    monkeypatch.setattr("datasets.load_dataset_builder", fail)
    with pytest.raises(DataError) as error:
        gmmlu.load("el")
    wanted = (gmmlu.REPO, gmmlu.REVISION, "address tried: http", str(failure), "LM_EVAL_EXT_DATA is not set")
    assert all(part in str(error.value) for part in wanted), error.value


# --- what a user can get wrong ----------------------------------------------------------------------------------------

BAD_MIRRORS: dict[str, tuple[object, tuple[str, ...]]] = {
    "a column is missing": (
        {key: value for key, value in row().items() if key != "option_b"},
        ("ko/test.jsonl, row 1", "Global-MMLU schema", "option_b"),
    ),
    "another schema": ({"question": "x", "choices": ["a"], "answer": 1}, ("schema", "sample_id", "option_a")),
    "the answer is no letter": (row(answer=2), ("row 1", "A, B, C, D", "2")),
    "the answer is of five": (row(answer="E"), ("'E'",)),
    "no question": (row(question=None), ("needs a question", "None")),
}


@pytest.mark.parametrize("case", BAD_MIRRORS)
def test_a_mirror_in_another_schema_is_refused(own: Path, case: str) -> None:
    content, parts = BAD_MIRRORS[case]
    write(own, content)  # type: ignore[arg-type]
    with pytest.raises(DataError) as error:
        gmmlu.load("ko")
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [("test.jsonl", b"", "is empty"), ("test.jsonl", b'{"a": 1', "truncated"), ("test.parquet", b"PAR1", "as parquet")],
)
def test_a_damaged_mirror_file_is_refused(own: Path, name: str, content: bytes, part: str) -> None:
    file = own / "gmmlu/ko" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(DataError, match=part):
        gmmlu.load("ko")


def test_a_mirror_without_annotations_has_no_subsets(own: Path) -> None:
    write(own, row())
    with pytest.raises(DataError, match="annotated CS"):
        gmmlu.load("ko", subset="CS")


def test_unknown_language_and_subset_are_named_with_the_valid_ones() -> None:
    with pytest.raises(LanguageError, match=r"'xx' of Global-MMLU; valid: am, ar, bn, cs, .*, yo, zh"):
        gmmlu.load("xx")
    with pytest.raises(DataError, match="'cs'; valid: all, CA, CS"):
        gmmlu.load("ko", subset="cs")
    with pytest.raises(DataError, match="'dev2'; valid: test, dev"):
        gmmlu.load("ko", split="dev2")


def test_more_examples_than_the_subject_has_is_an_error(own: Path, task_manager: TaskManager) -> None:
    write(own, row())
    write(own, row(sample_id="anatomy/dev/0"), split="dev")
    task = task_manager.load(["gmmlu_ko"])["tasks"]["gmmlu_ko"]
    with pytest.raises(DataError, match=r"num_fewshot=6, .* has 1 other questions on anatomy"):
        task.fewshot_context(task.test_docs()[0], 6)
