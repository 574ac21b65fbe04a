"""Open the storage of a study's trials: memory, a database, or a journal file that survives a power failure."""

from pathlib import Path
from typing import Any

from optuna import get_all_study_names
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from moa.plans.errors import MoaError, cause
from moa.plans.lines import Lines


def open_storage(where: str | None) -> BaseStorage | None:
    """Return the storage at a database URL or the path of a journal file; None stands for memory.

    A damaged rest of a journal is moved to a file of its own, which a warning names.

    Raises:
        MoaError: It cannot be opened, or the file is no journal; it is left as it was.
    """
    if where is None:
        return None
    try:
        if "://" in where:
            return get_storage(where)
        lock = _Lock(where)
        if Path(where).exists():
            lock.acquire()
            try:
                lock.lines.read()
            finally:
                lock.release()
        return JournalStorage(JournalFileBackend(where, lock_obj=lock))
    except MoaError:
        raise
    except Exception as error:  # each database has errors of its own
        said = cause(error)
        if isinstance(error, TypeError | KeyError | AttributeError):  # of optuna's code, which takes lines as they are
            said = "a line of it is damaged"
        reason = (said or type(error).__name__).splitlines()[0]
        raise MoaError(f"cannot open --storage {where}: {reason}") from None


def starts_again(where: str | None, name: str) -> str:
    """Return a line if the storage has studies but none of that name, so that trials start again; else nothing.

    Names are made of all that figures depend on, so the studies there cannot say what sets them apart from this one.
    """
    there = get_all_study_names(open_storage(where)) if where is not None else []
    if not there or name in there:
        return ""
    count = "1 study" if len(there) == 1 else f"{len(there)} studies"
    return (
        f"{where} has {count}, not of this model, profile, budget and seed by this version of moa: trials start again"
    )


class _Lock(JournalFileSymlinkLock):  # type: ignore[misc]  # optuna has no types here
    """Optuna's lock on a journal; whoever takes it to append first mends half a line that a killed worker left."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.lines = Lines(Path(path), "a journal of trials", b'{"op_code":', _ours)

    def acquire(self) -> bool:
        taken: bool = super().acquire()
        try:
            self.lines.mend()
        except BaseException:
            self.release()
            raise
        return taken


def _ours(entry: Any) -> bool:
    return isinstance(entry, dict) and "op_code" in entry
