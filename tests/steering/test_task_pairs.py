"""Pairs as the question is asked: prompts of harness tasks, own JSON lines, filters by behaviour, and refused splits."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from lm_eval.evaluator import simple_evaluate
from support import tiny, two_ways
from support.sweeps import given_settings
from transformers import AutoConfig
from typer.testing import CliRunner

from lm_eval_ext import cli, evaluation
from lm_eval_ext.backends.answers import read_answers, score_answers, where_answered
from lm_eval_ext.data.pairs import Pair, PairSet, load_pairs, prompt_hash
from lm_eval_ext.errors import DataError, ModelError, PlanError, UserError, VectorFileError
from lm_eval_ext.steering.decoder import decoder_layers, residual
from lm_eval_ext.steering.extraction import Capture, extract
from lm_eval_ext.steering.pooling import encode, encode_pairs, parse_pooling
from lm_eval_ext.steering.reuse import SeenQuestions
from lm_eval_ext.steering.vectors import ModelIdentity, VectorInfo, VectorSet
from lm_eval_ext.sweep.run import Sweep

SOURCE = "task:tiny_named_dev_{form}/tiny_plain_dev_{form}"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def pairs_of(form: str = "letters", **options: Any) -> list[PairSet]:
    with two_ways.tasks():
        return load_pairs("loc", SOURCE.format(form=form), **options)


def evaluated(model: Any, *names: str, **options: Any) -> dict[str, Any]:
    """A run of the harness."""
    with mock.patch("lm_eval.evaluator.add_env_info"):
        results: dict[str, Any] = simple_evaluate(
            model=model, tasks=list(names), task_manager=two_ways.task_manager(), bootstrap_iters=0, **options
        )
    return results


def roomy(family: str, steer: str = "", vectors: Any = None, **arguments: Any) -> Any:
    return tiny.steered(family, steer, pretrained=str(tiny.roomy_folder(family)), vectors=vectors, **arguments)


# Prompts of tasks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["letters", "cloze"])
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("qwen2", {"num_fewshot": 2}),
        ("llama", {"num_fewshot": 1, "apply_chat_template": True, "system_instruction": "Be brief."}),
    ],
)
def test_texts_are_the_prompts_that_the_harness_scores(family: str, options: dict[str, Any], form: str) -> None:
    """Every pair against the requests of a run of the harness with the same options, token by token."""
    model = roomy(family)
    model.tokenizer.chat_template = TEMPLATE
    given = {"tokenizer": model.tokenizer} if options.get("apply_chat_template") else {}
    pair_sets = pairs_of(form, **options, **given)
    assert [(pair_set.language, len(pair_set.pairs)) for pair_set in pair_sets] == [("es", 12), ("ko", 12)]
    names = [f"tiny_named_dev_{form}", f"tiny_plain_dev_{form}"]
    seen: list[Any] = []
    score = model.loglikelihood
    model.loglikelihood = lambda requests, **kwargs: seen.extend(requests) or score(requests, **kwargs)
    evaluated(model, *names, **options)
    prompts = {
        (request.task_name, request.doc["id"], request.doc["language"]): tokens.prompt
        for request, tokens in zip(seen, model.encode(seen), strict=True)
    }
    for pair_set in pair_sets:
        encoded = encode_pairs(model.tokenizer, pair_set.pairs, "last", "test")
        for pair, sides in zip(pair_set.pairs, encoded, strict=True):
            assert pair.asked is not None
            for name, asked, (text,) in zip(names, pair.asked, sides, strict=True):
                expected = prompts[name, asked.document["id"], pair_set.language]
                assert tuple(text.ids) == expected
                assert text.indices == [len(expected) - 1]  # where `last` adds
            assert pair.asked[0].document["id"] == pair.asked[1].document["id"]


def test_the_answer_of_a_pair_is_the_right_option_of_the_plain_question() -> None:
    (pair,) = (pair for pair in pairs_of("cloze")[1].pairs if pair.asked and pair.asked[1].document["id"] == "q3")
    assert pair.asked
    document = pair.asked[1].document
    assert not pair.negative.endswith(" ")
    assert pair.answer == "  " + document["options"][document["gold"]]  # the prompt's last space, and the delimiter


@pytest.mark.parametrize(
    ("source", "options", "error", "expected"),
    [
        ("task:tiny_named_dev_letters", {}, UserError, "write task:POSITIVE/NEGATIVE"),
        ("task:tiny_named_dev_letters/none", {}, UserError, "unknown task none"),
        ("task:tiny_named_dev_letters/tiny_plain_letters", {}, DataError, "no document of one task has the id"),
        (SOURCE.format(form="cloze"), {"languages": ["zh"]}, DataError, "no language in common with zh"),
        (SOURCE.format(form="cloze"), {"fewshot": 2}, UserError, "load_pairs does not take fewshot; valid"),
        ("mini", {"num_fewshot": 2}, UserError, "num_fewshot: only pairs of tasks"),
    ],
)
def test_mistakes_in_tasks(source: str, options: dict[str, Any], error: type[Exception], expected: str) -> None:
    with two_ways.tasks(), pytest.raises(error, match=expected):
        load_pairs("loc", source, **options)


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    with pytest.raises(ModelError, match="has no chat template"):
        pairs_of(apply_chat_template=True, tokenizer=tiny.load_tokenizer("llama"))


# JSON lines ----------------------------------------------------------------------------------------------------------------


def test_json_lines_hold_prompts_and_several_texts(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    rows = [
        {"id": 1, "language": "ko-KR", "positive": ["A:\nB", "A:\nC"], "negative": "D\n\nE:", "answer": " x"},
        {"language": "any", "positive": "F", "negative": ["G", "H", "I"]},
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    korean, other = load_pairs("formal", str(file))
    assert korean.pairs == (Pair("A:\nB", "D\n\nE:", "ko", " x", more_positives=("A:\nC",)),)
    assert (other.language, other.pairs[0].negatives) == ("any", ("G", "H", "I"))
    assert korean.record()["file"] == "own.jsonl"
    assert len(korean.record()["prompts"]) == 3


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "line 2: not JSON"),
        (
            '{"language": "ko", "positive": "a"}',
            "line 2: negative is missing; needed: a text that is not empty, or a list",
        ),
        ('{"language": "ko", "positive": [], "negative": "b"}', "line 2: positive is"),
        (
            '{"language": "ko", "positive": "a", "negative": "b", "negativ": 3}',
            "line 2: unknown key 'negativ', did you mean",
        ),
        ("[1]", "line 2: got"),
    ],
)
def test_mistakes_in_json_lines(line: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"language": "ko", "positive": "a", "negative": "b"}\n' + line, encoding="utf-8")
    with pytest.raises(DataError) as refused:
        load_pairs("formal", str(file))
    assert expected in str(refused.value)


def states(family: str, text: str, layer: int) -> torch.Tensor:
    """[tokens, hidden] after a layer, from a plain forward."""
    model, tokenizer = tiny.roomy(family)
    taken: list[torch.Tensor] = []
    decoder_layers(model)[layer].register_forward_hook(lambda _, __, output: taken.append(residual(output)[0]))
    with torch.no_grad():
        model(**tokenizer(text, return_tensors="pt"))
    return taken[0]


def test_the_state_of_several_texts_is_their_mean() -> None:
    model, tokenizer = tiny.roomy("llama")
    texts = [text[:20] for text in tiny.TEXTS.values()]
    pair = Pair(texts[0], texts[1], "ko", more_positives=(texts[2],), more_negatives=(texts[3], texts[0]))
    plain = Pair(texts[2], texts[0], "ko")
    found = extract(model, tokenizer, [pair, plain], layers=[1], batch_size=2).vectors["own", "ko"].tensors["vector"][0]
    last = [states("llama", text, 1)[-1] for text in texts]
    first = (last[0] + last[2]) / 2 - (last[1] + last[3] + last[0]) / 3
    torch.testing.assert_close(found, (first + last[2] - last[0]) / 2, rtol=0, atol=1e-4)


# Which tokens --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("pooling", ["last3", "first4", "after", "generated", "last99"])
def test_pooled_tokens(family: str, pooling: str) -> None:
    model, tokenizer = tiny.roomy(family)
    pair = Pair(
        "Which bird is the national bird of Korea and the answer?",
        "Which bird is the national bird?",
        answer=" rice is",
    )
    found = extract(model, tokenizer, [pair], layers=[2], pooling=pooling)
    begin = int(tiny.has_bos(family))
    ids = [tokenizer(text).input_ids for text in (pair.positive, pair.negative)]
    common = next(i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)
    means = []
    for text, tokens in zip((pair.positive, pair.negative), ids, strict=True):
        of_text = states(family, text + (pair.answer if pooling == "generated" else ""), 2)
        n = len(tokens)
        taken = {
            "last3": of_text[n - 3 : n],
            "first4": of_text[begin:4],
            "after": of_text[common:n],
            "generated": of_text[n:],
            "last99": of_text[begin:n],
        }[pooling]
        means.append(taken.mean(0))
    entry = found.vectors["own", "any"]
    assert entry.info.pooling == pooling
    torch.testing.assert_close(entry.tensors["vector"][0], means[0] - means[1], rtol=0, atol=1e-4)


def test_mistakes_in_poolings() -> None:
    assert [parse_pooling(text) for text in ("last1", "last03", "mean", "after")] == ["last", "last3", "mean", "after"]
    for text in ("middle", "first", "all", "prompt", "last0"):
        with pytest.raises(UserError, match=f"pooling '{text}' is unknown, valid: last, mean"):
            parse_pooling(text)
    model, tokenizer = tiny.roomy("llama")
    with pytest.raises(DataError, match=r"1 of 1 pairs of .* have no answer"):
        extract(model, tokenizer, [Pair("a b", "c")], pooling="generated")
    with pytest.raises(DataError, match="has no tokens at first1"):  # the beginning-of-sequence token only
        extract(model, tokenizer, [Pair("a b", "c")], pooling="first1")


def test_a_text_that_begins_with_the_special_token_gets_no_second_one() -> None:
    tokenizer = tiny.load_tokenizer("llama")
    (text,) = encode(tokenizer, ["<begin>Which bird"])
    assert text.ids == tokenizer("Which bird").input_ids
    assert text.indices == list(range(1, len(text.ids)))


# By behaviour --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["letters", "cloze"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "mpt"])
def test_answers_come_with_the_states(family: str, form: str, tmp_path: Path) -> None:
    """The same answers as those of a run of the harness, and vectors as from forwards of their own."""
    if family == "mpt":  # cannot run token trees
        torch.manual_seed(7)
        from transformers import AutoModelForCausalLM

        model, tokenizer = AutoModelForCausalLM.from_config(tiny.config("mpt")).eval(), tiny.tokenizer("mpt")
    else:
        model, tokenizer = tiny.roomy(family)
    pair_sets = pairs_of(form)
    answers, known = score_answers(model, tokenizer, pair_sets, [1, 3])
    assert len(answers) == 4 * two_ways.N
    assert bool(known) is (family != "mpt")
    if family != "mpt":
        results = evaluated(roomy(family), f"tiny_named_dev_{form}", f"tiny_plain_dev_{form}")
        for task, samples in results["samples"].items():
            for sample in samples:
                assert answers[task, sample["doc_hash"]] is bool(sample["acc"])
    kept, counts = where_answered(pair_sets, answers, paired=False, minimum=1)
    with mock.patch.object(Capture, "run", side_effect=AssertionError) if known else nullcontext():  # no other forward
        together = extract(model, tokenizer, kept, layers=[1, 3], known=known)
    apart = extract(model, tokenizer, kept, layers=[1, 3])
    for pair_set, count in zip(kept, counts, strict=True):
        assert len(pair_set.pairs) == count.kept == min(count.positive, count.negative)
        a, b = (found.vectors["loc", pair_set.language] for found in (together, apart))
        torch.testing.assert_close(a.tensors["vector"], b.tensors["vector"], rtol=0, atol=1e-4)


def test_paired_and_unpaired_sets_and_too_few() -> None:
    pair_sets = pairs_of()
    answers = {}
    for pair_set in pair_sets:
        for pair in pair_set.pairs:
            assert pair.asked
            number = int(pair.asked[0].document["id"][1:])
            answers[pair.asked[0].task_name, pair.asked[0].doc_hash] = number < 6
            answers[pair.asked[1].task_name, pair.asked[1].doc_hash] = number < 4
    kept, counts = where_answered(pair_sets, answers, minimum=2)
    assert [len(pair_set.pairs) for pair_set in kept] == [2, 2]  # questions 4 and 5
    assert "loc/es: 12 questions asked both ways, 6 positive prompts answered" in str(counts[0])
    unpaired, _ = where_answered(pair_sets, answers, paired=False, minimum=2)
    assert [len(pair_set.pairs) for pair_set in unpaired] == [6, 6]
    assert len({pair.positive for pair in unpaired[0].pairs}) == 6
    for pair in unpaired[0].pairs:
        assert pair.asked
        assert answers[pair.asked[0].task_name, pair.asked[0].doc_hash]
        assert not answers[pair.asked[1].task_name, pair.asked[1].doc_hash]
    with pytest.raises(DataError, match="too few pairs: 10 are needed, es has 2, ko has 2\n  loc/es: 12 questions"):
        where_answered(pair_sets, answers)
    with pytest.raises(DataError, match="are not of tasks"):
        where_answered([PairSet("loc", "ko", "own", (Pair("a", "b"),))], {})


def test_answers_from_a_folder_of_results(tmp_path: Path) -> None:
    names = ["tiny_named_dev_letters", "tiny_plain_dev_letters"]
    with two_ways.tasks():
        evaluation.evaluate(
            tasks=names, pretrained=tiny.roomy_folder("llama"), output=tmp_path / "run", device="cpu",
            model_args={"dtype": "float32"}, batch_size=4, log_samples=True, task_manager=two_ways.task_manager(),
        )  # fmt: skip
    pair_sets = pairs_of()
    model, tokenizer = tiny.roomy("llama")
    assert read_answers(tmp_path / "run", pair_sets) == score_answers(model, tokenizer, pair_sets, [0])[0]


# Splits --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vector file made from the development tasks, by the command."""
    out = tmp_path_factory.mktemp("made") / "v.safetensors"
    with two_ways.tasks():
        done = CliRunner().invoke(
            cli.app,
            [
                *("extract", "--kinds", "loc", "--pairs", f"loc={SOURCE.format(form='letters')}", "--out", str(out)),
                *("--model", str(tiny.roomy_folder("llama")), "--layers", "1", "--dtype", "float32", "--device", "cpu"),
                *("--where", "answered", "--unpaired", "--min-pairs", "1", "--num_fewshot", "1"),
            ],
        )
    assert done.exit_code == 0, done.output
    assert "loc/ko: 12 questions asked both ways" in done.output
    return out


def test_the_vector_file_says_what_it_was_made_from(made: Path) -> None:
    info = VectorSet.load(made).vectors["loc", "ko"].info
    assert info.pooling == "last"
    assert info.made_from["tasks"] == ["tiny_named_dev_letters", "tiny_plain_dev_letters"]
    assert info.made_from["families"] == ["tiny_named_dev_letters", "tiny_plain_dev_letters"]
    assert info.made_from["splits"] == ["dev"]
    assert info.made_from["rendering"] == {"num_fewshot": 1}
    assert info.made_from["where"] == "answered, unpaired"
    assert len(info.made_from["prompts"]) == 2 * info.n_pairs


def test_what_vectors_were_made_from_is_not_evaluated(made: Path) -> None:
    model = roomy("llama", "loc@1:1", made)
    with pytest.raises(
        DataError, match=r"task tiny_plain_dev_letters asks questions that were seen: the vectors of kind loc"
    ):
        evaluated(model, "tiny_plain_dev_letters")
    with pytest.raises(DataError, match="allow_same_split=True"):
        evaluated(model, "tiny_named_dev_letters")
    with pytest.raises(DataError, match=r"task tiny_copy_letters has \d+ prompts that were seen"):
        evaluated(model, "tiny_copy_letters", num_fewshot=1)
    assert evaluated(model, "tiny_plain_letters")["samples"]
    assert evaluated(roomy("llama", "", made), "tiny_plain_dev_letters")["samples"]  # unsteered
    allowed = roomy("llama", "loc@1:1", made, allow_same_split=True)
    assert evaluated(allowed, "tiny_plain_dev_letters")["samples"]


def test_a_prompt_that_several_questions_share_tells_none_of_them() -> None:
    """`Which of these names is mine?` with other options is another question."""
    info = VectorInfo(
        *("loc", "ko", (1,), "last", 9, "task:a/b", "0" * 64, "float32", (4.0,)),
        made_from={"families": ["names_dev"], "prompts": [prompt_hash("Which name?"), prompt_hash("Which city?")]},
    )
    made = tiny.vector_set("llama")
    vectors = VectorSet(made.model, {("loc", "ko"): replace(made.vectors["loc", "ko"], info=info)})
    seen = SeenQuestions(vectors, ["loc"])
    assert seen.of_task("names", {}, ["Which name?", "Which name?", "Which river?"]) is None
    found = seen.of_task("names", {}, ["Which name?", "Which name?", "Which city?"])
    assert found == "task names has 1 prompts that were seen: the vectors of kind loc were made from task:a/b"


def test_what_a_plan_was_chosen_on_is_not_evaluated(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "steer: loc@1:1\nchosen_on: {transfer: other_dev, localization: tiny_plain_dev_letters}\n", encoding="utf-8"
    )
    vectors = tiny.vector_set("llama")
    model = roomy("llama", str(plan), vectors, any_model=True)
    assert model.steering_identity()["plan"] == "loc@1:1"
    with pytest.raises(DataError, match="the plan was chosen on tiny_plain_dev_letters"):
        evaluated(model, "tiny_plain_dev_letters")
    assert evaluated(model, "tiny_plain_letters")["samples"]
    plan.write_text("rule: none\n", encoding="utf-8")
    with pytest.raises(PlanError, match="has no key 'steer'"):
        roomy("llama", str(plan), vectors)


def test_a_sweep_chooses_on_development_questions_only(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = {"vectors": made, "kinds": ("loc",), "model": str(tiny.roomy_folder("llama")), "limit": 2}
    with two_ways.tasks():
        Sweep(given_settings("llama", tmp_path / "a", tasks=("tiny_plain_dev_letters",), **common)).run()
        assert "chosen on what the vectors were made from" in " ".join(capsys.readouterr().err.split())
        Sweep(given_settings("llama", tmp_path / "b", tasks=("tiny_plain_letters",), **common)).run()


def test_a_sweep_asks_as_the_harness_does(tmp_path: Path) -> None:
    """With chat template, system instruction and examples, at the positions with a count."""
    folder = tmp_path / "chat"
    shutil.copytree(tiny.roomy_folder("llama"), folder)
    tokenizer = tiny.load_tokenizer("llama")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    task, options = (
        "tiny_plain_cloze",
        {"num_fewshot": 1, "apply_chat_template": True, "system_instruction": "Be brief."},
    )
    vectors = tiny.vector_set("llama")
    vectors = replace(vectors, model=ModelIdentity.of("chat", AutoConfig.from_pretrained(folder)))
    positions = ("last", "last4", "generated")
    asked = given_settings(
        "llama",
        tmp_path / "s",
        tasks=(task,),
        vectors=vectors,
        kinds=("loc",),
        model=str(folder),
        positions=positions,
        **options,
    )
    with two_ways.tasks():
        result = Sweep(replace(asked, limit=None)).run()
    assert result is not None
    for position in positions:
        plan = f"loc@1:1/{position}"
        model = tiny.steered("llama", plan, pretrained=str(folder), vectors=vectors)
        samples = evaluated(model, task, **options)["samples"][task]
        rows = result.items[result.items["condition"] == plan].set_index("doc_id")
        assert len(samples) == len(rows) == 2 * two_ways.N
        assert [rows.loc[sample["doc_id"], "acc"] for sample in samples] == [sample["acc"] for sample in samples]
        margins = []
        for sample in samples:
            values = [response[0][0] for response in sample["resps"]]
            right = values.pop(sample["doc"]["gold"])
            margins.append(right - max(values))
        assert [rows.loc[sample["doc_id"], "margin"] for sample in samples] == pytest.approx(margins, abs=1e-3)


def test_damaged_records_are_refused(made: Path, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(made, framework="pt") as file:
        (name, text), tensors = next(iter(file.metadata().items())), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    metadata = json.loads(text)
    metadata["vectors"][0]["made_from"] = ["dev"]
    save_file(tensors, tmp_path / "v.safetensors", {name: json.dumps(metadata)})
    with pytest.raises(VectorFileError, match="must be objects"):
        VectorSet.load(tmp_path / "v.safetensors")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--where", "right"], "--where 'right' is unknown, valid: answered"),
        (["--unpaired"], "--unpaired: only with --where answered"),
        (["--num_fewshot", "2", "--kinds", "loc"], "num_fewshot: only pairs of tasks"),
        (["--apply_chat_template", "--pairs", f"loc={SOURCE.format(form='letters')}"], "has no chat template"),
    ],
)
def test_mistakes_on_the_command_line(options: list[str], expected: str, tmp_path: Path) -> None:
    with two_ways.tasks():
        refused = CliRunner().invoke(
            cli.app, ["extract", "--out", str(tmp_path / "v"), "--model", str(tiny.roomy_folder("llama")), *options]
        )
    assert refused.exit_code == 2
    assert expected in " ".join(refused.output.split())
