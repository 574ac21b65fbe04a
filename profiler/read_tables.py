"""Define a profile's tables of reads: what it costs that a group reads little of what it keeps.

Tensors `read.<source>.<length>` are float32 [variants, shares, layers, groups]: the estimator's effect of reading that
share of all bytes while everything is kept, summed over the rows measured (`moa.profiler.reads`) and over all samples.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moa.plans.errors import ProfileError
from moa.plans.reading import SELECTION
from moa.profiler.header import Reads

Cut = tuple[str, int]


@dataclass(frozen=True)
class ReadTables:
    """The measured harm of reads.

    Attributes:
        shares: Shares of all bytes that were measured, in 1/256, falling.
        tables: Table per (source, length): float32 [variants, shares, layers, groups].
        rows: Rows measured per (source, length), over all samples.
    """

    shares: tuple[int, ...]
    tables: Mapping[Cut, npt.NDArray[np.float32]]
    rows: Mapping[Cut, int]

    def header(self) -> dict[str, Any]:
        """Return what the file's header says of the tables."""
        tables = [{"source": s, "length": n, "rows": self.rows[s, n]} for s, n in self.tables]
        return {"selection": SELECTION, "shares": list(self.shares), "tables": tables}

    def tensors(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the tables by their names in the file."""
        return {_name(cut): np.ascontiguousarray(table) for cut, table in self.tables.items()}

    @classmethod
    def of(cls, said: Reads, tensors: Mapping[str, Any]) -> "ReadTables":
        """Return the tables that a header describes.

        Raises:
            KeyError: One is not there.
        """
        cuts = [(table.source, table.length) for table in said.tables]
        rows = [table.rows for table in said.tables]
        return cls(said.shares, {cut: tensors[_name(cut)] for cut in cuts}, dict(zip(cuts, rows, strict=True)))

    def only(self, variants: list[int]) -> "ReadTables":
        """Return the tables of some variants."""
        return dataclasses.replace(self, tables={cut: table[variants] for cut, table in self.tables.items()})

    def check_plus(self, other: "ReadTables") -> None:
        """Refuse to add tables of other shares.

        Raises:
            ProfileError: The shares differ.
        """
        if self.shares != other.shares:
            mine, its = (", ".join(f"{share}/256" for share in x.shares) for x in (self, other))
            raise ProfileError(f"profiles to add must have reads of the same shares, found {mine} and {its}")

    def plus(self, other: "ReadTables") -> "ReadTables":
        """Return the sum of both, every sample counted once."""
        both = {**self.tables, **other.tables}
        return ReadTables(
            self.shares,
            {cut: np.sum([x.tables[cut] for x in (self, other) if cut in x.tables], axis=0) for cut in both},
            {cut: self.rows.get(cut, 0) + other.rows.get(cut, 0) for cut in both},
        )

    def shape(self, variants: int, layers: int, groups: int) -> dict[str, tuple[int, ...]]:
        """Return the shape that each tensor must have, by name."""
        return dict.fromkeys(map(_name, self.tables), (variants, len(self.shares), layers, groups))


def _name(cut: Cut) -> str:
    return f"read.{cut[0]}.{cut[1]}"
