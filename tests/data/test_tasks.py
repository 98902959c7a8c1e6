"""The task files through the real harness: names, prompts, scores, groups."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from lm_eval_ext.data import blend, localization_gap, tasks_tree
from lm_eval_ext.data.task_metadata import TaskMetadata
from lm_eval_ext.errors import DataError
from lm_eval_ext.languages import LANGUAGES, NON_ENGLISH
from lm_eval_ext.paths import tasks_dir
from lm_eval_ext.results import legacy_names

GMMLU = ("gmmlu", "gmmlu_ca", "gmmlu_cs")
SEVEN = (*GMMLU, "gmmlu_dev", "blend_decon", "blend_decon_dev", "blend_decon_firm", "blend_ctx", "blend_ctx_dev")
SEVEN = (*SEVEN, "transfer_mini", "localization_mini", "localization_mini_ctx", "bmlama", "bmlama_dev")
ABOUT = tuple(LANGUAGES[code].country for code in NON_ENGLISH)
GROUPS = {name: tuple(LANGUAGES) for name in SEVEN} | {
    "english_bias": NON_ENGLISH,
    "blend_decon_core": NON_ENGLISH,
    "blend_decon_en_about": ABOUT,
    **dict.fromkeys(
        ("localization_gap", "localization_gap_dev", "localization_gap_ctx", "localization_gap_ctx_dev"),
        localization_gap.LANGUAGES,
    ),
}
CLOZE_BY_NATURE = ("bmlama", "bmlama_dev")
FORMS = {name: ("",) if name in CLOZE_BY_NATURE else ("", "_cloze") for name in GROUPS}
FURTHER = "am bn ces de fa fil fr ha he hi ig it ja ky lt mg ms ne nl ny pl pt ro ru si sn so sr sv sw te tr uk vi yo"
MORE = {**dict.fromkeys(GMMLU, FURTHER.split()), "gmmlu_dev": ["tr", "bn", "fr", "ru"]}
NAMES = [
    f"{group}{language}{suffix}"
    for group, codes in GROUPS.items()
    for suffix in FORMS[group]
    for language in ("", *(f"_{code}" for code in (*codes, *MORE.get(group, ()))))
]
#: Groups of tasks that are in no other group.
NAMES += [f"{group}_gap{suffix}" for group in (*GMMLU, "gmmlu_dev") for suffix in ("", "_cloze")]
BY_COUNTRY = tuple(name for name in GROUPS if name.startswith(("blend", "english_bias", "localization")))
LETTERS = {"acc"}
CLOZE = {"acc", "acc_norm", "acc_mutual_info"}
CLOZE_BY_COUNTRY = CLOZE | {"acc_bytes", "acc_prior"}


class Opinionated(LM):
    """Prefers options by a hash of prompt and option: no weights, the same answer every time."""

    def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        hashes = (hashlib.sha256("|".join(request.args).encode()).digest() for request in requests)
        return [(-float(digest[0]) - 1, False) for digest in hashes]

    def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
        raise NotImplementedError


@pytest.fixture(scope="session")
def task_manager() -> TaskManager:
    return TaskManager(include_path=str(tasks_dir()), include_defaults=False)


@pytest.fixture
def data(small_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small mirror, set for the test."""
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(small_data))
    monkeypatch.setenv("LM_EVAL_EXT_ALLOW_MODIFIED", "1")
    return small_data


def evaluate(task_manager: TaskManager, *tasks: str, **options: Any) -> dict[str, Any]:
    results = simple_evaluate(
        Opinionated(), tasks=list(tasks), task_manager=task_manager, bootstrap_iters=0, verbosity="ERROR", **options
    )
    assert results is not None
    return results


def metrics(scores: dict[str, Any]) -> dict[str, float]:
    return {
        name.removesuffix(",none"): value
        for name, value in scores.items()
        if name.endswith(",none") and not name.endswith("_stderr,none")
    }


# --- the files --------------------------------------------------------------------------------------------------------


def test_the_files_are_what_the_generator_writes() -> None:
    generated = [file for file in tasks_dir().rglob("*.yaml") if tasks_tree.is_generated(file)]
    assert {str(file.relative_to(tasks_dir())): file.read_text("utf-8") for file in generated} == tasks_tree.files()


def test_the_generator_repairs_and_clears_a_folder(tmp_path: Path) -> None:
    (tmp_path / "gmmlu").mkdir()
    (tmp_path / "gmmlu" / "gmmlu_xx.yaml").write_text(f"{tasks_tree.HEADER}\ntask: gmmlu_xx\n")
    (tmp_path / "gmmlu" / "gmmlu_ko.yaml").write_text(f"{tasks_tree.HEADER}\ntask: outdated\n")
    (tmp_path / "gmmlu" / "_letters").write_text("kept")
    tasks_tree.write(tmp_path)
    assert not (tmp_path / "gmmlu" / "gmmlu_xx.yaml").exists()
    assert (tmp_path / "gmmlu" / "_letters").read_text() == "kept"
    assert {
        str(file.relative_to(tmp_path)): file.read_text("utf-8") for file in tmp_path.rglob("*.yaml")
    } == tasks_tree.files()


def test_the_generator_leaves_hand_written_files_alone(tmp_path: Path) -> None:
    own = tmp_path / "proverbs" / "proverbs_sw.yaml"
    own.parent.mkdir()
    own.write_text("# by hand\ntask: proverbs_sw\n")
    tasks_tree.write(tmp_path)
    assert own.read_text() == "# by hand\ntask: proverbs_sw\n"
    (tmp_path / "gmmlu" / "gmmlu_ko.yaml").write_text("task: gmmlu_ko\n")
    with pytest.raises(DataError, match=r"gmmlu_ko\.yaml is hand-written"):
        tasks_tree.write(tmp_path)
    assert (tmp_path / "gmmlu" / "gmmlu_ko.yaml").read_text() == "task: gmmlu_ko\n"


def test_every_task_says_what_it_is_as_its_name_did_before(task_manager: TaskManager) -> None:
    """Results that were written before tasks had metadata are read by the names: both must agree."""
    for family in tasks_tree.FAMILIES:
        for suffix, form in family.forms.items():
            for member in (*family.members, *family.further):
                name = f"{family.name}_{member.name}{suffix}"
                said = TaskMetadata(
                    name,
                    yaml.safe_load(
                        (tasks_dir() / family.folder / f"{name}.yaml").read_text("utf-8").replace("!function", "")
                    )["metadata"],
                )
                assert (said.axis, said.split, said.form) == (family.axis, family.split, form)
                assert (said.family, said.language) == (family.name + suffix, member.language)
                earlier = not family.name.startswith(
                    ("english_bias", "blend_decon_en_about", "localization_gap", "blend_decon_firm", "blend_ctx_dev")
                )
                if member.language in LANGUAGES and earlier:
                    known = legacy_names.family(name)
                    assert said.family == known
                    assert said.axis == legacy_names.axis(known)
                    assert said.split == legacy_names.split(known)
                    assert said.form == legacy_names.form(known)
                    assert said.language == legacy_names.language(name)
                    if said.variant == "explicit_context":
                        assert said.variant_of == legacy_names.explicit_context_of(known)


def test_the_harness_indexes_every_name_and_no_other(task_manager: TaskManager) -> None:
    assert sorted(task_manager.all_tasks) == sorted(NAMES)
    assert len(NAMES) == 12 * 2 * 8 + 3 * 2 * 7 + 2 * 8 + 3 * 2 * 35 + 4 * 2 * 6 + 2 * 4 + 4 * 2


def lm_eval(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lm_eval", *arguments, "--include_path", str(tasks_dir())]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def test_the_command_line_lists_them_beside_the_harness_s_own_which_have_other_names() -> None:
    listed = lm_eval("ls", "tasks")
    names = {cell.strip() for line in listed.stdout.splitlines() for cell in line.split("|")}
    assert set(NAMES) <= names, listed.stderr
    assert len(names) > 10_000
    assert "overrides existing task" not in listed.stderr


def test_the_command_line_validates_them() -> None:
    validated = lm_eval("validate", "--tasks", ",".join(NAMES))
    assert validated.returncode == 0, validated.stderr
    assert "All tasks found and valid" in validated.stdout


@pytest.mark.parametrize("family", tasks_tree.FAMILIES, ids=lambda family: family.name)
def test_every_family_is_documented(family: tasks_tree.Family) -> None:
    text = (tasks_dir() / family.folder / "README.md").read_text("utf-8")
    for part in (
        f"`{family.name}`",
        "`_cloze`",
        "### Paper",
        "### Citation",
        "### Checklist",
        "icence",
        family.version.split("+")[0],
    ):
        assert part in text, part


# --- prompts ----------------------------------------------------------------------------------------------------------

CLOZE_PROMPTS = {
    "en": ("Question: {}\nAnswer:", " "),
    "es": ("Pregunta: {}\nRespuesta:", " "),
    "id": ("Pertanyaan: {}\nJawaban:", " "),
    "el": ("Ερώτηση: {}\nΑπάντηση:", " "),
    "ko": ("질문: {}\n답:", " "),
    "zh": ("问题：{}\n答案：", ""),
    "ar": ("السؤال: {}\nالإجابة:", " "),
}


@pytest.mark.parametrize("name", ["transfer_mini", "localization_mini", "localization_mini_ctx"])
@pytest.mark.parametrize("code", LANGUAGES)
def test_prompts(task_manager: TaskManager, name: str, code: str) -> None:
    tasks = task_manager.load([f"{name}_{code}", f"{name}_{code}_cloze"])["tasks"]
    letters, cloze = tasks[f"{name}_{code}"], tasks[f"{name}_{code}_cloze"]
    document = letters.test_docs()[0]
    a, b, c, d = document["options"]
    prompt = f"{document['question']}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:"
    assert [request.args for request in letters.construct_requests(document, letters.fewshot_context(document, 0))] == [
        (prompt, f" {letter}") for letter in "ABCD"
    ]
    template, delimiter = CLOZE_PROMPTS[code]
    prompt = template.format(document["question"])
    requests = cloze.construct_requests(document, cloze.fewshot_context(document, 0))
    assert [request.args for request in requests] == [
        *((prompt, delimiter + option) for option in document["options"]),
        *(("", delimiter + option) for option in document["options"]),
    ]
    assert document["language"] == code


@pytest.mark.usefixtures("data")
def test_arguments_of_the_model_reach_no_loader(task_manager: TaskManager) -> None:
    arguments = ("pretrained", "vectors", "steer", "lang", "positions", "peft", "dtype", "batch_size", "padding_side")
    more = ("revision", "device_map", "max_length", "variant", "subfolder", "tokenizer", "attn_implementation")
    metadata = dict.fromkeys((*arguments, *more), "x")
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False, metadata=metadata)
    names = [
        "transfer_mini_ko",
        "localization_mini_ctx_ko_cloze",
        "blend_ctx_ko",
        "blend_decon_dev_ko_cloze",
        "bmlama_ko",
    ]
    for name, task in manager.load(names)["tasks"].items():
        assert list(task.test_docs()) == list(task_manager.load([name])["tasks"][name].test_docs())
        assert task.config.metadata["language"] == "ko"


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "suffix"), [(group, suffix) for group in GROUPS for suffix in FORMS[group]])
def test_every_group_runs_and_is_the_mean_over_its_members(
    task_manager: TaskManager, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, group: str, suffix: str
) -> None:
    monkeypatch.delenv("LM_EVAL_EXT_DATA", raising=False)
    if "mini" not in group:
        request.getfixturevalue("data")
    results = evaluate(task_manager, group + suffix, limit=8)["results"]
    by_country = group in BY_COUNTRY
    accuracies = LETTERS
    if suffix or group in CLOZE_BY_NATURE:
        accuracies = CLOZE_BY_COUNTRY if by_country else CLOZE
    expected = set(accuracies)
    if by_country:
        expected |= {"english_bias", "other_rate"} | ({"english_bias_norm"} if suffix else set())
        expected |= {"english_bias_unshared"} if "mini" not in group and "gap" not in group else set()
    per_member = {member: metrics(results[f"{group}_{member}{suffix}"]) for member in GROUPS[group]}
    for member, scores in per_member.items():
        assert set(scores) == expected
        # 0 or 1 per document; `english_bias_unshared` leaves documents out
        assert all((8 * score).is_integer() for name, score in scores.items() if name != "english_bias_unshared")
        if by_country and member != "en":
            assert scores["acc"] + scores["english_bias"] + scores["other_rate"] == pytest.approx(1)
    averaged = metrics(results[group + suffix])
    assert set(averaged) == (expected if group == "english_bias" else accuracies)
    for metric, value in averaged.items():
        assert value == pytest.approx(sum(scores[metric] for scores in per_member.values()) / len(per_member))


@pytest.mark.usefixtures("data")
def test_languages_count_alike_whatever_their_number_of_questions(task_manager: TaskManager) -> None:
    results = evaluate(task_manager, "english_bias")
    sizes = {name: counts["effective"] for name, counts in results["n-samples"].items()}
    assert len(set(sizes.values())) > 1
    scores = [metrics(results["results"][name])["english_bias"] for name in sizes]
    assert metrics(results["results"]["english_bias"])["english_bias"] == pytest.approx(sum(scores) / 6)


def documents(manager: TaskManager, name: str) -> list[dict[str, Any]]:
    return list(manager.load([name])["tasks"][name].test_docs())


@pytest.mark.usefixtures("upstream_data")
def test_blend_tasks_share_no_question_between_splits_and_name_the_country_where_they_say_so(
    task_manager: TaskManager,
) -> None:
    names = (
        "decon_el",
        "decon_dev_el_cloze",
        "decon_core_el",
        "decon_core_ar_cloze",
        "ctx_el",
        "decon_en_about_Greece",
    )
    test, dev, core, core_ar, ctx, about = (documents(task_manager, f"blend_{name}") for name in names)
    ids = [{row["id"] for row in rows} for rows in (test, dev, core, core_ar, ctx, about)]
    assert not ids[0] & ids[1]
    assert {row["split"] for row in dev} == {"dev2"}
    assert ids[2] < ids[0]
    assert ids[3] & ids[2]
    assert ids[4] == ids[0] >= ids[5]
    plain = {row["id"]: row for row in test}
    assert all("Ελλάδα" not in row["question"] for row in test)
    for row in ctx:
        assert row["question"] != plain[row["id"]]["question"]
        assert row["options"] == plain[row["id"]]["options"]
    assert len(about) > 0.8 * len(test)
    for row in about:
        assert (row["language"], row["gold"]) == ("en", plain[row["id"]]["gold"])
    words = [row for row in about if row["format"] == "text"]
    assert sum(row["options"] != plain[row["id"]]["options"] for row in words) > 0.9 * len(words)
    assert sum("Gree" in row["question"] for row in about) > 0.95 * len(about)


@pytest.mark.usefixtures("upstream_data")
def test_a_shuffle_seed_in_the_metadata_moves_the_options_and_nothing_else(task_manager: TaskManager) -> None:
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False, metadata={"shuffle_seed": 7})
    for name in ("blend_decon_ko", "blend_ctx_ko_cloze", "blend_decon_en_about_China", "english_bias_ko"):
        before, after = documents(task_manager, name), documents(manager, name)
        assert [row["id"] for row in before] == [row["id"] for row in after]
        assert [row["question"] for row in before] == [row["question"] for row in after]
        assert [row["options"][row["gold"]] for row in before] == [row["options"][row["gold"]] for row in after]
        assert sum(a["options"] != b["options"] for a, b in zip(before, after, strict=True)) > len(before) / 2


def test_the_version_of_the_blend_tasks_says_which_items_were_built(
    task_manager: TaskManager, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(shared_data))
    assert blend.fingerprint() == tasks_tree.BLEND_ITEMS
    for name in ("blend_decon_ko", "blend_ctx_ko", "english_bias_ko", "blend_decon_en_about_China_cloze"):
        assert f"3.0+{tasks_tree.BLEND_ITEMS[:12]}" == task_manager.load([name])["tasks"][name].VERSION


def test_samples_carry_what_the_plane_and_steering_read(task_manager: TaskManager) -> None:
    results = evaluate(task_manager, "localization_mini_ko_cloze", limit=3)
    for sample in results["samples"]["localization_mini_ko_cloze"]:
        assert sample["doc"]["language"] == "ko"
        assert len(sample["doc"]["countries"]) == 4
        assert {"acc", "english_bias_norm"} <= set(sample)
    config = results["configs"]["localization_mini_ko_cloze"]
    assert config["metadata"]["version"] == 2.0
    assert config["metadata"]["language"] == "ko"


@pytest.mark.usefixtures("data")
def test_few_shot_on_request_for_gmmlu_and_never_for_sets_without_a_second_split(task_manager: TaskManager) -> None:
    results = evaluate(task_manager, "gmmlu_ar_cloze", "transfer_mini_ar", limit=2, num_fewshot=5)
    assert results["n-shot"] == {"gmmlu_ar_cloze": 5, "transfer_mini_ar": 0}
    (prompt, _), *_ = results["samples"]["gmmlu_ar_cloze"][0]["arguments"]
    assert prompt.count("السؤال: ") == 6
