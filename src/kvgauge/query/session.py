"""One question at a time, to DuckDB in memory: read-only, bounded in memory and time, no way to a file or a network.

How that is held: everything a view needs is handed to DuckDB as Arrow objects that Python opened, so its own access to
files and extensions is switched off (`enable_external_access`) and the settings are locked before the question is
looked at; then the question must be one SELECT, and the only table functions in it those that make rows of their own.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from kvgauge.failures import SamplesError, UsageError
from kvgauge.query import tables
from kvgauge.query.views import NAMES, VIEWS, sample_tables
from kvgauge.samples.schema import schema_of

if TYPE_CHECKING:
    import duckdb

Returned = TypeVar("Returned")

MEMORY_GIB = 2.0
TIMEOUT_S = 60.0
GIVE_UP_S = 10.0
SQL_CHARS_MAX = 100_000
ROWS_AT_ONCE = 4096
ROWS_FROM_NOTHING = frozenset({"range", "generate_series", "unnest", "repeat", "repeat_row"})
LOCKS = (
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET python_enable_replacements = false",  # no variable of ours is a table
    "SET temp_directory = ''",  # nothing is spilled to disk
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)


class Session:
    """The views of some run folders, ready for questions. A context manager; not thread-safe.

    memory_gib  what DuckDB may hold
    timeout_s   of one question, its rows included
    raises      UsageError, SamplesError
    """

    def __init__(
        self, folders: Sequence[Path], *, memory_gib: float = MEMORY_GIB, timeout_s: float = TIMEOUT_S
    ) -> None:
        import duckdb

        found = tables.sources(folders)
        self._memory_gib, self._timeout_s, self._deadline_s = memory_gib, timeout_s, 0.0
        self._stuck = False
        self._db = duckdb.connect(":memory:", config={"memory_limit": f"{memory_gib:g}GiB"})
        try:
            self._fill(found)
            for setting in LOCKS:
                self._db.execute(setting)
        except BaseException:
            self._db.close()
            raise

    def _fill(self, found: Sequence[tables.Source]) -> None:
        for name, table in tables.result_tables(found).items():
            self._db.register(name, table)
        for kind, name in sample_tables():
            parts = tables.sample_parts(found, kind) or [("", schema_of(kind).empty_table())]
            selects = []
            for index, (label, part) in enumerate(parts):
                self._db.register(f"{name}_{index}", part)
                quoted = label.replace("'", "''")
                selects.append(f"SELECT '{quoted}' AS folder, * FROM {name}_{index}")  # noqa: S608 - names of our own
            self._db.execute(f"CREATE TEMP VIEW {name} AS " + " UNION ALL ".join(selects))
        for view in VIEWS:
            if view.sql is not None:
                self._db.execute(f"CREATE TEMP VIEW {view.name} AS {view.sql}")

    def ask(self, sql: str) -> "Answer":
        """raises UsageError for a question that is wrong or not allowed, SamplesError when it takes too much."""
        self._deadline_s = time.monotonic() + self._timeout_s
        named: set[str] = set()

        def work() -> "duckdb.DuckDBPyConnection":
            named.update(self._allowed(sql))
            return self._db.execute(sql)

        return Answer(self, self.within_limits(work, named))

    def within_limits(self, work: Callable[[], Returned], named: AbstractSet[str] = frozenset()) -> Returned:
        """What `work` gives, done in a thread of its own: DuckDB does not look for Ctrl-C while it works.

        raises  as `ask`; KeyboardInterrupt
        """
        import duckdb

        future: Future[Returned] = Future()
        threading.Thread(target=_do, args=(work, future), daemon=True).start()
        try:
            return future.result(max(0.0, self._deadline_s - time.monotonic()))
        except TimeoutError:
            self._stop(future)
            raise SamplesError(
                f"no answer within {self._timeout_s:g} s: ask about fewer runs, name cell and run_id, or --timeout S"
            ) from None
        except KeyboardInterrupt:
            self._stop(future)
            raise
        except (duckdb.Error, RuntimeError, ValueError, OverflowError) as error:  # a date Python has no room for
            raise self._told(error, named) from None

    def _stop(self, future: "Future[Returned]") -> None:
        """Again and again: an interruption before the work began is forgotten."""
        until_s = time.monotonic() + GIVE_UP_S
        while not future.done() and time.monotonic() < until_s:
            self._db.interrupt()
            wait([future], timeout=0.05)
        self._stuck = not future.done()

    def _allowed(self, sql: str) -> set[str]:
        """The tables a question names. raises UsageError when it is not one SELECT over the views"""
        import duckdb

        if len(sql) > SQL_CHARS_MAX:
            raise UsageError(f"a question of {len(sql):,} characters: at most {SQL_CHARS_MAX:,} are taken")
        if not sql.isprintable() and any("\ud800" <= char <= "\udfff" for char in sql):
            raise UsageError("the question is not UTF-8 text")
        statements = self._db.extract_statements(sql)
        if len(statements) != 1:
            raise UsageError(f"expected one SELECT, got {len(statements)} statements: ask one question at a time")
        if statements[0].type != duckdb.StatementType.SELECT:
            kind = str(statements[0].type).rpartition(".")[2]
            hint = ": write PIVOT ... ON column IN (...) inside a SELECT" if kind == "MULTI" else ""
            raise UsageError(f"only SELECT is answered, this is {kind}{hint}; nothing can be changed here")
        row = self._db.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
        try:
            tree = json.loads(row[0]) if row else {"error": True}
        except RecursionError:
            raise UsageError("this question is nested too deeply to be looked through: make it flatter") from None
        if tree.get("error"):
            raise UsageError(f"this question cannot be looked through: {tree.get('error_message', 'no reason given')}")
        named = set()
        for kind, name in _sources(tree):
            if kind == "TABLE_FUNCTION" and name.lower() not in ROWS_FROM_NOTHING:
                raise UsageError(
                    f"{name}() is not answered: only the views are read ({', '.join(NAMES)}), no file and no network"
                )
            named.add(name.lower())
        return named

    def _told(self, error: Exception, named: AbstractSet[str]) -> UsageError | SamplesError:
        """One line: what was wrong, and what there is instead."""
        import duckdb

        if isinstance(error, duckdb.OutOfMemoryException):
            return SamplesError(
                f"the question needs more than {self._memory_gib:g} GiB of memory: ask about fewer runs or columns, "
                "or --memory GIB"
            )
        told = str(error).partition("\n\nLINE")[0]
        told = " ".join(line.strip() for line in told.splitlines() if line.strip())[:500]
        told = told.partition(": ")[2] if told.split(": ")[0].endswith("Error") else told
        known = [name for name in NAMES if name in named]
        if isinstance(error, duckdb.CatalogException) and "Table with name" in told:
            return UsageError(f"{told.split('!')[0]}. Views: {', '.join(NAMES)}")
        if isinstance(error, duckdb.BinderException) and known:
            held = "; ".join(f"{name} has {', '.join(NAMES[name].columns)}" for name in known)
            return UsageError(f"{told.split(' Candidate bindings')[0]} {held}")
        return UsageError(f"{told} (`kvgauge query --views` lists the columns)")

    def close(self) -> None:
        """A DuckDB that did not heed an interruption is left to the end of the process: closing would wait for it."""
        if not self._stuck:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _do(work: Callable[[], Returned], future: "Future[Returned]") -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


class Answer:
    """Columns and rows of a question that is being answered. The rows can be read once, before the next question."""

    def __init__(self, session: Session, result: "duckdb.DuckDBPyConnection") -> None:
        self._session, self._result = session, result
        self.columns = tuple(str(column[0]) for column in result.description or ())

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """raises as Session.ask"""
        while batch := self._session.within_limits(lambda: self._result.fetchmany(ROWS_AT_ONCE)):
            yield from batch


def _sources(tree: object) -> Iterator[tuple[str, str]]:
    """Every table and table function in DuckDB's syntax tree: its kind and its name."""
    left = [tree]
    while left:
        node = left.pop()
        if isinstance(node, list):
            left += node
        elif isinstance(node, dict):
            left += node.values()
            kind, function = node.get("type"), node.get("function")
            if kind == "BASE_TABLE":
                yield kind, str(node.get("table_name", ""))
            elif kind == "TABLE_FUNCTION":
                yield kind, str(function.get("function_name", "?")) if isinstance(function, dict) else "?"
