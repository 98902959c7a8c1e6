"""The cells that a sweep has computed: one SQLite file per process, one transaction per forward.

A cell is one condition on one tree, and trees are identified by their content: the grid and the tasks may change between
runs, and cells of the same tokens are reused. Cells of another model, vector file or dtype are refused.
"""

from __future__ import annotations

import sqlite3
from array import array
from typing import TYPE_CHECKING

from lm_eval_ext.errors import ResultsError
from lm_eval_ext.fingerprints import hash_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

#: Incremented when cells of earlier releases are no longer valid.
FORMAT = "1"

_SCHEMA = """
create table if not exists identity (name text primary key, value text not null) without rowid;
create table if not exists cells (
    condition text not null, tree text not null, numbers blob not null, primary key (condition, tree)
) without rowid;
"""


class Store:
    """The cells of a sweep in `folder`.

    Args:
        folder: created if needed.
        identity: what all cells depend on (model, vector file, dtype), by name; the names are for messages.
        rank: of this process; each process writes its own file and reads all files.

    Raises:
        ResultsError: the folder holds cells of another identity, or a damaged file.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str], rank: int = 0) -> None:
        self.folder = folder
        self._identity = {"format": FORMAT, **identity}
        self._cells: dict[str, dict[str, list[float]]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.glob("cells-*.sqlite")):
                self._read(path)
            self._path = folder / f"cells-{rank}.sqlite"
            self._connection = sqlite3.connect(self._path, timeout=60)
            self._connection.executescript(_SCHEMA)
            with self._connection:
                self._connection.executemany("insert or ignore into identity values (?, ?)", self._identity.items())
        except sqlite3.DatabaseError as error:
            raise ResultsError(
                f"{folder} holds a damaged file of cells ({error}); move it away, or pass --restart to discard it"
            ) from None
        except OSError as error:
            raise ResultsError(f"cannot write to {folder} ({error.strerror}); give another --out") from None

    def _read(self, path: Path) -> None:
        connection = sqlite3.connect(path, timeout=60)
        try:
            connection.executescript(_SCHEMA)
            stored = dict(connection.execute("select name, value from identity"))
            changed = [name for name, value in self._identity.items() if name in stored and stored[name] != value]
            if changed:
                raise ResultsError(
                    f"the sweep in {path.parent} was started with another "
                    + ", ".join(f"{name} ({stored[name]}, now {self._identity[name]})" for name in changed)
                    + "; give another --out, or pass --restart to discard it"
                )
            for condition, tree, numbers in connection.execute("select condition, tree, numbers from cells"):
                values = array("d")
                values.frombytes(numbers)
                self._cells.setdefault(condition, {})[tree] = list(values)
        finally:
            connection.close()

    def refresh(self) -> None:
        """Read the cells that other processes have written."""
        for path in sorted(self.folder.glob("cells-*.sqlite")):
            self._read(path)

    def get(self, condition: str, tree: str) -> list[float] | None:
        """The values of a cell, None if it has not been computed."""
        return self._cells.get(condition, {}).get(tree)

    def trees(self) -> set[str]:
        """The keys of all trees that have a cell."""
        return {tree for cells in self._cells.values() for tree in cells}

    def write(self, cells: Iterable[tuple[str, str, list[float]]]) -> None:
        """Store cells (condition, tree, values) in one transaction.

        Raises:
            ResultsError: the file cannot be written, for example because the disk is full. Earlier cells are kept.
        """
        rows = list(cells)
        try:
            with self._connection:
                self._connection.executemany(
                    "insert or replace into cells values (?, ?, ?)",
                    [(condition, tree, array("d", values).tobytes()) for condition, tree, values in rows],
                )
        except sqlite3.Error as error:
            raise ResultsError(
                f"cannot write to {self._path} ({error}); earlier cells are kept: free disk space and run it again"
            ) from None
        for condition, tree, values in rows:
            self._cells.setdefault(condition, {})[tree] = values

    def close(self) -> None:
        """Close this process's file."""
        self._connection.close()


def tree_key(
    prompt: tuple[int, ...], continuations: Iterable[tuple[int, ...]], language: str, normalised: bool, lead: int = 0
) -> str:
    """A key that identifies a tree by its content, across runs."""
    content = [prompt, list(continuations), language, normalised]
    return hash_json([*content, lead] if lead else content)[:24]
