"""What a sweep has computed so far: one SQLite file per process, a transaction per forward, so that a kill loses only that.

A cell is one condition on one tree, and trees are known by their content: a grid may grow and tasks may change between
two starts, and what was computed for the same tokens is used again. What would make old cells wrong, another model, vector
file or precision, is refused.
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

#: Raised when cells of earlier releases would no longer mean the same.
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
        folder: made if needed.
        identity: what all cells depend on (model, vector file, dtype), by name; the names are for messages.
        rank: of this process; each writes a file of its own and reads all.

    Raises:
        ResultsError: the folder holds cells of another identity, or a file that is not ours.
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
                f"{folder} holds a damaged file of cells ({error}); move it away, or pass --restart to begin anew"
            ) from None
        except OSError as error:
            raise ResultsError(f"cannot write to {folder} ({error.strerror}); give another --out") from None

    def _read(self, path: Path) -> None:
        connection = sqlite3.connect(path, timeout=60)
        try:
            connection.executescript(_SCHEMA)
            found = dict(connection.execute("select name, value from identity"))
            changed = [name for name, value in self._identity.items() if name in found and found[name] != value]
            if changed:
                raise ResultsError(
                    f"{path.parent} holds a sweep with another "
                    + ", ".join(f"{name} ({found[name]}, now {self._identity[name]})" for name in changed)
                    + "; give another --out, or pass --restart to discard it"
                )
            for condition, tree, numbers in connection.execute("select condition, tree, numbers from cells"):
                values = array("d")
                values.frombytes(numbers)
                self._cells.setdefault(condition, {})[tree] = list(values)
        finally:
            connection.close()

    def refresh(self) -> None:
        """Read what the other processes have written."""
        for path in sorted(self.folder.glob("cells-*.sqlite")):
            self._read(path)

    def get(self, condition: str, tree: str) -> list[float] | None:
        """The values of a cell, None if it has not been computed."""
        return self._cells.get(condition, {}).get(tree)

    def trees(self) -> set[str]:
        """Every tree that some cell is of."""
        return {tree for cells in self._cells.values() for tree in cells}

    def write(self, cells: Iterable[tuple[str, str, list[float]]]) -> None:
        """Keep (condition, tree, values), all or none of them.

        Raises:
            ResultsError: the disk is full, or the file cannot be written any more. What was kept before stays.
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
                f"cannot write to {self._path} ({error}); what was computed before is kept: make room and start again"
            ) from None
        for condition, tree, values in rows:
            self._cells.setdefault(condition, {})[tree] = values

    def close(self) -> None:
        """Close this process's file."""
        self._connection.close()


def tree_key(prompt: tuple[int, ...], continuations: Iterable[tuple[int, ...]], language: str, normalised: bool) -> str:
    """A name for a tree that another start finds again."""
    return hash_json([prompt, list(continuations), language, normalised])[:24]
