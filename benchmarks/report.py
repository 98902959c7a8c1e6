"""Time, memory and page of the report and the leaderboard on many models with full-size tasks.

    python benchmarks/report.py                            # 200 models x 7 languages x 14,042 questions
    python benchmarks/report.py --models 20 --questions 2000
    python benchmarks/report.py --keep FOLDER              # keep the generated results, or use those that are there

The generator writes what the harness writes (`results_*.json`, `samples_*.jsonl` with question, options and
log-likelihoods) for a transfer family `gmmlu` of the given size and a localization family `blend_decon` of 300 questions,
but leaves the prompts out of the samples. Both commands run in processes of their own. Printed: wall time and peak memory
of each (children included), the size of the page, and how long headless Chromium needs until the page can be used.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

LANGUAGES = ("en", "es", "id", "el", "ko", "zh", "ar")
COUNTRIES = ("US", "Spain", "Indonesia", "Greece", "South_Korea", "China", "Algeria")
WORDS = {
    "en": "what is the name of this thing and where does it come from",
    "es": "cuál es el nombre de esta cosa y de dónde viene",
    "id": "apa nama benda ini dan dari mana asalnya",
    "el": "ποιο είναι το όνομα αυτού του πράγματος και από πού έρχεται",
    "ko": "이것의 이름은 무엇이며 어디에서 왔습니까",
    "zh": "这个东西叫什么名字它是从哪里来的",
    "ar": "ما اسم هذا الشيء ومن أين يأتي",
}
CULTURAL = 300
DATE = "2026-01-02T03-04-05.678901"

LIMITS = {"report seconds": 60.0, "report GB": 4.0, "page MB": 15.0, "interactive seconds": 3.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--questions", type=int, default=14_042)
    parser.add_argument("--keep", type=Path, help="folder of the generated results; a temporary one if not given")
    args = parser.parse_args()
    root = args.keep or Path(tempfile.mkdtemp(prefix="lm_eval_ext_report_"))
    try:
        tree = root / f"{args.models}x{args.questions}"
        if not (tree / "done").exists():
            print(f"writing {args.models} models x {len(LANGUAGES)} languages x {args.questions:,} questions ...")
            size = generate(tree, args.models, args.questions)
            print(f"  {size / 1e9:.2f} GB of samples")
        measured = measure(tree, root)
    finally:
        if args.keep is None:
            shutil.rmtree(root)
    for name, value in measured.items():
        limit = LIMITS.get(name)
        mark = "" if limit is None else f"   (limit {limit:g}: {'kept' if value < limit else 'MISSED'})"
        print(f"{name:>24}: {value:8.2f}{mark}")


def generate(tree: Path, n_models: int, n_questions: int) -> int:
    """Write the results of many models; returns bytes of samples."""
    size = 0
    parts = {
        (family, language): _documents(family, language, n)
        for family, n in (("gmmlu", n_questions), ("blend_decon", CULTURAL))
        for language in LANGUAGES
    }
    for model in range(n_models):
        name = f"org{model % 7}/model-{model:03d}"
        place = tree / f"model-{model:03d}" / name.replace("/", "__")
        place.mkdir(parents=True, exist_ok=True)
        for (family, language), (heads, golds, middles) in parts.items():
            shared = np.random.default_rng([len(family), LANGUAGES.index(language)])
            own = np.random.default_rng([model, len(family), LANGUAGES.index(language)])
            chosen = (golds + shared.integers(1, 4, len(golds)) * (shared.random(len(golds)) < 0.55)) % 4
            changed = own.random(len(golds)) < 0.02 + 0.1 * model / n_models
            chosen = np.where(changed & (model > 0), own.integers(0, 4, len(golds)), chosen)
            lines = _lines(family, language, heads, golds, middles, chosen)
            (place / f"samples_{family}_{language}_{DATE}.jsonl").write_bytes(b"".join(lines))
            size += sum(map(len, lines))
        (place / f"results_{DATE}.json").write_text(json.dumps(_results(name, parts)))
    (tree / "done").touch()
    return size


def _documents(family: str, language: str, n: int) -> tuple[list[bytes], Any, list[bytes]]:
    """Beginnings of the lines, indices of the right options, hashes."""
    heads, middles = [], []
    rng = np.random.default_rng([7, len(family), LANGUAGES.index(language)])
    golds = rng.integers(0, 4, n)
    for number in range(n):
        document: dict[str, Any] = {
            "id": f"{family}/{number}",
            "language": language,
            "question": f"{WORDS[language][:30]} {number}?",
            "options": [f"{WORDS[language][:4]} {option}" for option in range(4)],
            "gold": int(golds[number]),
            "topic": f"topic {number % 20}",
        }
        if family == "blend_decon":
            local = COUNTRIES[LANGUAGES.index(language)]
            others = [country for country in COUNTRIES if country != local][:3]
            others.insert(int(golds[number]), local)
            document["countries"] = [[country] for country in others]
        head = json.dumps({"doc_id": number, "doc": document, "target": str(golds[number])}, ensure_ascii=False)
        digest = sha256(head.encode()).hexdigest()
        heads.append(f'{head[:-1]}, "arguments": {{}}, "resps": [], "filtered_resps": '.encode())
        middles.append(f'"doc_hash": "{digest}", "prompt_hash": "{digest}", "target_hash": "t", '.encode())
    return heads, golds, middles


def _lines(
    family: str, language: str, heads: list[bytes], golds: Any, middles: list[bytes], chosen: Any
) -> list[bytes]:
    names = ["acc", "english_bias", "other_rate"] if family == "blend_decon" else ["acc"]
    responses = [
        (
            json.dumps([[str(-1.5 - (option != pick)), "False"] for option in range(4)])
            + f', "filter": "none", "metrics": {json.dumps(names)}, '
        ).encode()
        for pick in range(4)
    ]
    right = chosen == golds
    english = (
        np.zeros(len(golds), dtype=int)
        if language == "en"
        else (~right & ((chosen + (chosen > golds)) % 4 == 0)).astype(int)
    )
    ends = [
        [
            (
                f'"acc": {float(hit)}'
                + (
                    f', "english_bias": {float(bias)}, "other_rate": {float(not hit and not bias)}'
                    if len(names) > 1
                    else ""
                )
                + "}\n"
            ).encode()
            for bias in (0, 1)
        ]
        for hit in (0, 1)
    ]
    rows = zip(heads, chosen.tolist(), middles, right.tolist(), english.tolist(), strict=True)
    return [head + responses[pick] + middle + ends[hit][bias] for head, pick, middle, hit, bias in rows]


def _results(name: str, parts: dict[tuple[str, str], Any]) -> dict[str, Any]:
    tasks = {f"{family}_{language}": len(golds) for (family, language), (_, golds, _) in parts.items()}
    return {
        "results": {task: {"alias": task} for task in tasks},
        "group_subtasks": {
            family: [f"{family}_{language}" for language in LANGUAGES] for family in ("gmmlu", "blend_decon")
        },
        "configs": {task: {"task": task, "metadata": {"version": 1.0}} for task in tasks},
        "versions": dict.fromkeys(tasks, 1.0),
        "n-shot": dict.fromkeys(tasks, 0),
        "n-samples": {task: {"original": n, "effective": n} for task, n in tasks.items()},
        "config": {"model": "hf", "model_args": {"pretrained": name}, "limit": None, "fewshot_seed": 1234},
        "model_name": name,
        "model_name_sanitized": name.replace("/", "__"),
        "lm_eval_version": "0.4.13",
    }


def measure(tree: Path, root: Path) -> dict[str, float]:
    """Run both commands and open the page."""
    page = root / "report.html"
    arguments = [str(tree), "--baseline", "model-000", "--x", "gmmlu", "--y", "blend_decon", "-o", str(page)]
    report_time, report_cpu, report_memory = run(["report", *arguments])
    site_time, site_cpu, site_memory = run(["leaderboard", str(tree), "-o", str(root / "site")])
    measured = {
        "report seconds": report_time,
        "report processor s": report_cpu,
        "report GB": report_memory,
        "page MB": page.stat().st_size / 1e6,
        "leaderboard seconds": site_time,
        "leaderboard processor s": site_cpu,
        "leaderboard GB": site_memory,
        "leaderboard page MB": (root / "site" / "index.html").stat().st_size / 1e6,
    }
    if browser := shutil.which("chromium") or shutil.which("google-chrome"):
        measured["interactive seconds"] = usable(page, browser)
        measured["leaderboard interactive"] = usable(root / "site" / "index.html", browser)
    return measured


def run(arguments: list[str]) -> tuple[float, float, float]:
    """Wall time and processor time in seconds, and peak memory in GB of the command and its children together."""
    started, used = time.perf_counter(), _processor_time()
    process = subprocess.Popen([sys.executable, "-m", "lm_eval_ext", *arguments], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _resident(process.pid))
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"lm-eval-ext {arguments[0]} failed with status {process.returncode}")
    own = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # the largest single process so far
    return time.perf_counter() - started, _processor_time() - used, max(peak, own) / 1e9


def _processor_time() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _resident(pid: int) -> int:
    """Proportional memory of a process and its children: shared pages are counted once (Linux)."""
    total = 0
    for path in [Path(f"/proc/{pid}"), *(Path(f"/proc/{child}") for child in _children(pid))]:
        try:
            lines = (path / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def _children(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []


def usable(page: Path, browser: str) -> float:
    """Seconds from opening a page in headless Chromium until its controls answer and the first figure stands."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = running.new_page()
        started = time.perf_counter()
        tab.goto(page.as_uri(), wait_until="commit")
        tab.wait_for_selector("html[data-interactive]", state="attached")
        tab.wait_for_selector(".plot .scatterlayer", state="attached")
        tab.evaluate("1")  # the main thread answers
        seconds = time.perf_counter() - started
        running.close()
    return seconds


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
