"""Where a study's trials live: memory, a database, or a journal file that a power failure does not close for ever."""

from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from moa.plans.errors import MoaError
from moa.plans.lines import Lines


def open_storage(where: str | None) -> BaseStorage | None:
    """A storage from a database URL, or from the path of a journal file; None is memory.

    A damaged rest of a journal is set aside, and a warning says where.

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
        said = error.strerror if isinstance(error, OSError) else str(error)
        reason = (said or type(error).__name__).splitlines()[0]
        raise MoaError(f"cannot open --storage {where}: {reason}") from None


class _Lock(JournalFileSymlinkLock):  # type: ignore[misc]  # optuna has no types here
    """Optuna's lock on a journal, which all who append take: having it, none adds to half a line of a killed worker."""

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
