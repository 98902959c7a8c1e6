"""Digests that are recorded in files and decide on splits and orders: they stay what they are, for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_eval_ext.data.blend.options import digest
from lm_eval_ext.data.pairs import Pair, PairSet
from lm_eval_ext.data.rows import Instruction, sha256
from lm_eval_ext.fingerprints import hash_file, hash_files, hash_text, hash_tree
from lm_eval_ext.sweep.store import tree_key

if TYPE_CHECKING:
    from pathlib import Path


def test_texts_and_what_is_made_of_them() -> None:
    assert hash_text("a", "é") == "1b1e98fb1aaacbb9ec6c810a64e852871ab5ae96f70568e75167b79f25758e04"
    assert hash_text("a", 1) == "773232abe9343f0e102f8248423fc6ceec7d0ac3f4f0144ab3bd88a0611be529"
    assert digest("a", 1, "é") == "99287ed071556d25d5ac54a9fdaf2741c9cd951d117b4de3d2f9cee8ecef2ed4"
    assert tree_key((1, 2), [(3,)], "ko", True) == "2577d663fb31f7c9611b60f1"
    row = Instruction(id="a", language="ko", prompt="p", response="é")
    assert sha256([row]) == "301699f5ac3117f3f8c0ba7c87be148acb32e6affb26349d3960f55b0a5ea394"
    pairs = PairSet("en", "ko", "x", (Pair("añ", "b"),))
    assert pairs.sha256 == "05a2534bdf0e9a9a8658d2f3df35010ab9e5d8af83cfb1e043943cdf50fa4c8d"


def test_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "b").write_bytes(b"y")
    before = hash_tree(tmp_path)
    assert before == "365ffc8b6a192238cddd277b3b644db8f9622fb805c2bc25d93e727069e98711"
    assert hash_tree(tmp_path / "a") == "fe72e3b5a95af2bdb00b5c3eb061589cc11e97a75d333c617ce4d25ed4c8c09a"
    assert hash_file(tmp_path / "s" / "b") == hash_text("y")
    assert hash_files([tmp_path / "s" / "b"]) == hash_text("b", "y", separator="")
    (tmp_path / "c.pyc").write_bytes(b"z")
    assert hash_tree(tmp_path) == before
    (tmp_path / "s" / "b").rename(tmp_path / "s" / "c")
    assert hash_tree(tmp_path) != before
