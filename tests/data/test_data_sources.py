"""All data through one door: mirror first, else upstream, always what its hash says, never something else."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lm_eval_ext.data import derived, sources
from lm_eval_ext.data.derived import DERIVED, Derived
from lm_eval_ext.errors import DataError
from lm_eval_ext.languages import FURTHER

NAME = "blend/annotations/Greece_data.json"
CONTENT = b'{"Al-en-01": {}}\n'


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Upstream:
    """Files served over HTTP, with a log of what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, (asked := [])

        class Handler(SimpleHTTPRequestHandler):
            def log_request(self, *_: object) -> None:
                asked.append(self.path)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def put(self, path: str, content: bytes) -> str:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return f"{self.url}/{path}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Upstream]:
    server = Upstream(tmp_path / "upstream")
    yield server
    server.close()


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _no_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LM_EVAL_EXT_DATA", raising=False)
    monkeypatch.delenv("LM_EVAL_EXT_ALLOW_MODIFIED", raising=False)
    monkeypatch.setenv("LM_EVAL_EXT_CACHE", str(tmp_path / "cache"))


def register(monkeypatch: pytest.MonkeyPatch, url: str, content: bytes = CONTENT) -> None:
    monkeypatch.setattr(sources, "registry", lambda: {NAME: (sha256(content), url)})


def put(folder: Path, name: str, content: bytes) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


# --- the mirror -------------------------------------------------------------------------------------------------------


def test_every_known_file_of_the_real_mirror_has_its_hash(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(shared_data))
    absent = tuple(f"parallel/ntrex128/{code}.txt" for code in FURTHER)
    names = [name for name in [*sources.registry(), *DERIVED] if not name.startswith(("instruct/", *absent))]
    assert len(names) == 20 + 7 + 8 + 5
    for name in names:
        assert sources.path(name) in (shared_data / name, shared_data / f"{name}.gz")


def test_the_registry_pins_every_file_to_a_commit() -> None:
    for name, (digest, url) in sources.registry().items():
        assert len(digest) == 64, name
        path = url.removeprefix("https://raw.githubusercontent.com/").removeprefix("https://huggingface.co/datasets/")
        owner, repo, commit, *_ = path.replace("/resolve/", "/").split("/")
        assert (len(commit), owner != "", repo != "") == (40, True, True), name


def test_the_mirror_comes_first(mirror: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, upstream.put("Greece.json", CONTENT))
    file = put(mirror, NAME, CONTENT)
    assert sources.path(NAME) == file
    assert upstream.asked == []


def test_what_the_mirror_lacks_is_fetched(mirror: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, upstream.put("Greece.json", CONTENT))
    assert sources.path(NAME).read_bytes() == CONTENT
    assert upstream.asked == ["/Greece.json"]


def test_a_changed_mirror_file_is_refused_unless_allowed(
    mirror: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, upstream.put("Greece.json", CONTENT))
    file = put(mirror, NAME, b"changed")
    with pytest.raises(DataError) as refused:
        sources.path(NAME)
    for part in (str(file), sha256(CONTENT), sha256(b"changed"), "LM_EVAL_EXT_ALLOW_MODIFIED=1"):
        assert part in str(refused.value)
    assert upstream.asked == []  # and nothing else is taken in its place
    monkeypatch.setenv("LM_EVAL_EXT_ALLOW_MODIFIED", "1")
    assert sources.path(NAME) == file


def test_a_mirror_may_hold_a_file_packed(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "http://127.0.0.1:1/none")
    file = put(mirror, f"{NAME}.gz", gzip.compress(CONTENT))
    assert sources.path(NAME) == file
    assert sources.read_text(file) == CONTENT.decode()
    file.write_bytes(gzip.compress(b"changed"))
    with pytest.raises(DataError, match=sha256(b"changed")):
        sources.path(NAME)


def test_a_mirror_may_hold_files_of_its_own(mirror: Path) -> None:
    file = put(mirror, "own/questions.jsonl", b"{}")
    assert sources.path("own/questions.jsonl") == file
    assert sources.mirrored("own/questions.jsonl") == file
    assert sources.mirrored("own/nothing.jsonl") is None


# --- fetching ---------------------------------------------------------------------------------------------------------


def test_a_fetched_file_is_cached_and_needs_no_network_again(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    register(monkeypatch, upstream.put("Greece.json", CONTENT))
    first = sources.path(NAME)
    assert "100%" in capfd.readouterr().err  # the progress bar
    upstream.close()
    assert sources.path(NAME) == first
    assert first.read_bytes() == CONTENT


def test_a_damaged_cache_is_fetched_again(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, upstream.put("Greece.json", CONTENT))
    sources.path(NAME).write_bytes(CONTENT[:5])
    assert sources.path(NAME).read_bytes() == CONTENT
    assert upstream.asked == ["/Greece.json"] * 2


def test_a_wrong_file_upstream_is_an_error_and_leaves_nothing(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = upstream.put("Greece.json", b"moved to another host")
    register(monkeypatch, url)
    with pytest.raises(DataError, match="cannot fetch") as error:
        sources.path(NAME)
    assert url in str(error.value)
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


# --- files made from upstream files -----------------------------------------------------------------------------------

OLD_US_QUESTIONS = (
    "ID,Topic,Source,Question,Translation\n"
    'Al-en-16,Education,English (US),"At what age, in your country?","At what age, in the US?"\n'
    "Al-en-01,Food,English (US),What is a snack in your country?,What is a snack in the US?\n"
)


def test_templates_come_from_the_column_that_was_called_question() -> None:
    assert derived.templates([OLD_US_QUESTIONS]) == (
        "ID,Topic,Source,Question\r\n"
        'Al-en-16,Education,English (US),"At what age, in your country?"\r\n'
        "Al-en-01,Food,English (US),What is a snack in your country?\r\n"
    )


def test_templates_are_written_as_the_mirror_has_them(shared_data: Path) -> None:
    text = (shared_data / "blend/templates/templates_en.csv").read_bytes().decode()
    assert derived.templates([text]) == text


def test_the_blank_chinese_question_comes_from_the_column_that_was_called_translation(shared_data: Path) -> None:
    fixed = json.loads((shared_data / "blend/templates/question_fixes.json").read_text("utf-8"))["China/New-en-04"]
    old = f"ID,Topic,Source,Question,Translation\nNew-en-04,Food,English (US),Who in your country?,{fixed}\n"
    made = derived.question_fixes([old]).encode()
    assert made == (shared_data / "blend/templates/question_fixes.json").read_bytes()


def test_answers_of_the_other_regions_are_written_as_the_mirror_has_them(shared_data: Path) -> None:
    text = (shared_data / "blend/annotations_en_other6.jsonl").read_bytes().decode()
    regions: dict[str, dict[str, object]] = {}
    for line in text.splitlines():
        record = json.loads(line)
        groups = [{"answers": ["local"], **group} for group in record["annotations"]]
        upstream = {"question": "local", "en_question": record["en_question"], "annotations": groups}
        # Upstream orders these keys differently from question to question.
        upstream["idks"] = dict(reversed(record["idks"].items())) | {"other": 1}
        regions.setdefault(record["country"], {})[record["ID"]] = upstream
    assert derived.other_regions([json.dumps(region) for region in regions.values()]) == text


def test_facts_are_joined_from_upstream_s_tables_as_the_mirror_has_them(shared_data: Path) -> None:
    text = sources.read_text(shared_data / "bmlama53/bmlama53_7lang.jsonl.gz")
    rows = [json.loads(line) for line in text.splitlines()]
    tables = []
    for code in ("en", "es", "id", "el", "ko", "zh", "ar"):
        own = [row[code] for row in rows]
        cells = [(x["cloze"], x["candidates"][x["gold"]], ", ".join(x["candidates"]), x["subject"]) for x in own]
        tables.append(
            "".join(f"{chr(9).join(line)}\r\n" for line in [("Prompt", "Ans", "Candidate Ans", "Subject"), *cells])
        )
    assert derived.bmlama(tables) == text


@pytest.fixture
def made(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Derived:
    url = upstream.put("owner/repo/commit/data/US_questions.csv", OLD_US_QUESTIONS.encode())
    result = derived.templates([OLD_US_QUESTIONS]).encode()
    recipe = Derived(sha256(result), {url: sha256(OLD_US_QUESTIONS.encode())}, derived.templates)
    monkeypatch.setitem(DERIVED, "blend/templates/templates_en.csv", recipe)
    return recipe


def test_a_derived_file_is_made_once(made: Derived, upstream: Upstream) -> None:
    first = sources.path("blend/templates/templates_en.csv")
    assert sha256(first.read_bytes()) == made.sha256
    upstream.close()
    assert sources.path("blend/templates/templates_en.csv") == first


def test_a_derived_file_that_comes_out_different_is_an_error(
    made: Derived, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = upstream.put("owner/repo/commit/data/US_questions.csv", b"ID,Topic,Source,Question\n")
    recipe = Derived(made.sha256, {url: None}, made.convert)
    monkeypatch.setitem(DERIVED, "blend/templates/templates_en.csv", recipe)
    for _ in range(2):  # asked twice, fetched twice: the bad input is not kept
        with pytest.raises(DataError, match="has another content"):
            sources.path("blend/templates/templates_en.csv")
    assert len(upstream.asked) == 2


# --- what a user can get wrong ----------------------------------------------------------------------------------------

Case = Callable[[Path, Upstream, pytest.MonkeyPatch], object]


def _mirror_is_no_folder(tmp: Path, _: Upstream, patch: pytest.MonkeyPatch) -> object:
    patch.setenv("LM_EVAL_EXT_DATA", str(tmp / "nowhere"))
    return sources.path(NAME)


def _mirror_is_a_file(tmp: Path, _: Upstream, patch: pytest.MonkeyPatch) -> object:
    patch.setenv("LM_EVAL_EXT_DATA", str(put(tmp, "file", b"")))
    return sources.path(NAME)


def _mirror_lacks_it_and_offline(tmp: Path, upstream: Upstream, patch: pytest.MonkeyPatch) -> object:
    patch.setenv("LM_EVAL_EXT_DATA", str(tmp))
    return _offline(tmp, upstream, patch)


def _offline(_: Path, upstream: Upstream, patch: pytest.MonkeyPatch) -> object:
    upstream.close()
    register(patch, f"{upstream.url}/Greece.json")
    return sources.path(NAME)


def _gone(_: Path, upstream: Upstream, patch: pytest.MonkeyPatch) -> object:
    register(patch, f"{upstream.url}/Greece.json")
    return sources.path(NAME)


def _cut_off_download(_: Path, upstream: Upstream, patch: pytest.MonkeyPatch) -> object:
    register(patch, upstream.put("Greece.json", CONTENT[:-3]))
    return sources.path(NAME)


def _wrong_hash(tmp: Path, upstream: Upstream, patch: pytest.MonkeyPatch) -> object:
    register(patch, f"{upstream.url}/Greece.json")
    put(tmp / "data", NAME, CONTENT[:-3])
    patch.setenv("LM_EVAL_EXT_DATA", str(tmp / "data"))
    return sources.path(NAME)


def _derived_offline(_: Path, upstream: Upstream, patch: pytest.MonkeyPatch) -> object:
    upstream.close()
    recipe = Derived("0" * 64, {f"{upstream.url}/a/b/c/d.csv": None}, derived.templates)
    patch.setitem(DERIVED, "blend/templates/templates_en.csv", recipe)
    return sources.path("blend/templates/templates_en.csv")


BAD_INPUT: dict[str, tuple[Case, tuple[str, ...]]] = {
    "mirror folder missing": (_mirror_is_no_folder, ("LM_EVAL_EXT_DATA", "nowhere", "not a folder")),
    "mirror is a file": (_mirror_is_a_file, ("LM_EVAL_EXT_DATA", "not a folder")),
    "not in the mirror, offline": (_mirror_lacks_it_and_offline, (NAME, "http://127.0.0.1", "LM_EVAL_EXT_DATA=")),
    "no mirror, offline": (_offline, (NAME, "http://127.0.0.1", "LM_EVAL_EXT_DATA is not set")),
    "gone upstream": (_gone, (NAME, "404", "LM_EVAL_EXT_DATA")),
    "cut off on the way": (_cut_off_download, (NAME, "hash", "LM_EVAL_EXT_DATA")),
    "wrong hash in the mirror": (_wrong_hash, (NAME, sha256(CONTENT), sha256(CONTENT[:-3]), "ALLOW_MODIFIED")),
    "derived, offline": (_derived_offline, ("a/b/c/d.csv", "LM_EVAL_EXT_DATA")),
    "unknown file": (lambda *_: sources.path("blend/annotations/Atlantis.json"), ("no address", "Atlantis")),
    "no such file": (lambda tmp, *_: sources.read_text(tmp / "none"), ("none", "No such file")),
    "a folder": (lambda tmp, *_: sources.read_text(tmp), ("cannot read",)),
    "packed and cut off": (
        lambda tmp, *_: sources.read_text(put(tmp, "a.gz", gzip.compress(CONTENT)[:-9])),
        ("a.gz", "unpacked", "truncated"),
    ),
    "packed and damaged": (lambda tmp, *_: sources.read_text(put(tmp, "a.gz", b"no gzip")), ("a.gz", "unpacked")),
    "empty file": (lambda tmp, *_: sources.read_text(put(tmp, "a", b" \n")), ("is empty",)),
    "not UTF-8": (lambda tmp, *_: sources.read_text(put(tmp, "a", "año".encode("latin-1"))), ("not UTF-8", "byte 1")),
    "truncated JSON": (lambda tmp, *_: sources.read_json(put(tmp, "a", b'{"x": [1,')), ("not JSON", "truncated")),
    "truncated JSONL": (
        lambda tmp, *_: sources.read_jsonl(put(tmp, "a", b'{"x": 1}\n{"x": ')),
        ("line 2", "not JSON", "truncated"),
    ),
    "JSONL of other things": (lambda tmp, *_: sources.read_jsonl(put(tmp, "a", b"[1, 2]\n")), ("line 1", "list")),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gives_one_clear_error(
    case: str, tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    provoke, parts = BAD_INPUT[case]
    with pytest.raises(DataError) as error:
        provoke(tmp_path, upstream, monkeypatch)
    message = str(error.value)
    assert all(part in message for part in parts), message
    assert len(message.splitlines()) <= 8


def test_json_lines_may_hold_any_unicode_separator(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b\x1cc\x85d"}, {"text": "e"}]
    file = put(tmp_path, "a.jsonl", "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode())
    assert sources.read_jsonl(file) == rows
