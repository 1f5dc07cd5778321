"""Exact counts on free square grids: Z of models with hard constraints.

Counts are Python integers of any size; their logarithms are log Z at equal weights, in nats.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

Profile = TypeVar("Profile")


def hard_squares_count(rows: int, columns: int) -> int:
    """The number of sets of sites of a rows x columns grid without neighbouring sites (hard squares at fugacity 1).

    Site by site, over the occupied sites among the last `columns`: an occupied site needs both its left and its upper
    neighbour empty. Source: Baxter, Enting and Tsang, Journal of Statistical Physics 22, 465 (1980).

    Example:
        >>> hard_squares_count(4, 4)
        1234
    """

    def grown(profile: int, j: int) -> Iterator[int]:
        yield profile & ~(1 << j)
        taken = (1 << j) | (1 << (j - 1) if j else 0)  # the site above, and the one on the left
        if not profile & taken:
            yield profile | (1 << j)

    return sum(_profiles(rows, columns, 0, grown).values())


def colourings_count(rows: int, columns: int, *, colours: int = 3) -> int:
    """The number of proper colourings of a rows x columns grid (three colours: square ice, up to boundary).

    Site by site, over the colours of the last `columns` sites. Source: Lieb, Physical Review 162, 162 (1967).

    Example:
        >>> colourings_count(2, 2)
        18
    """

    def grown(profile: tuple[int, ...], j: int) -> Iterator[tuple[int, ...]]:
        left = profile[j - 1] if j else -1
        for colour in range(colours):
            if colour not in (profile[j], left):
                yield (*profile[:j], colour, *profile[j + 1 :])

    return sum(_profiles(rows, columns, (-1,) * columns, grown).values())


def dominoes_count(rows: int, columns: int) -> int:
    """The number of tilings of a rows x columns board by dominoes, as an exact integer; the cost grows as 2^columns.

    Site by site, over the sites already covered from above or from the left.

    Example:
        >>> dominoes_count(8, 8)
        12988816
    """

    def grown(profile: int, j: int) -> Iterator[int]:
        if profile & (1 << j):  # covered: leaves the site below free
            yield profile & ~(1 << j)
            return
        yield profile | (1 << j)  # a domino down
        if j + 1 < columns and not profile & (2 << j):  # a domino to the right
            yield profile | (2 << j)

    return _profiles(rows, columns, 0, grown).get(0, 0)


def dominoes_log_count(rows: int, columns: int) -> float:
    """Natural logarithm of the number of domino tilings of a rows x columns board; -inf where both sides are odd.

        Π_{j=1}^{⌈rows/2⌉} Π_{k=1}^{⌈columns/2⌉} (4 cos²(πj/(rows+1)) + 4 cos²(πk/(columns+1)))

    Source: Kasteleyn, Physica 27, 1209 (1961); Temperley and Fisher, Philosophical Magazine 6, 1061 (1961).
    """
    _check_sides(rows, columns)
    if rows % 2 and columns % 2:
        return -math.inf
    j = np.arange(1, (rows + 1) // 2 + 1)[:, None]
    k = np.arange(1, (columns + 1) // 2 + 1)[None, :]
    factors = 4 * np.cos(np.pi * j / (rows + 1)) ** 2 + 4 * np.cos(np.pi * k / (columns + 1)) ** 2
    return float(np.log(factors).sum())


def spanning_trees_log_count(rows: int, columns: int) -> float:
    """Natural logarithm of the number of spanning trees of a rows x columns grid.

        (1/(rows·columns)) Π_{(j,k)≠(0,0)} (4 sin²(πj/2rows) + 4 sin²(πk/2columns)):

    the non-zero eigenvalues of the graph Laplacian. Source: Kirchhoff, Annalen der Physik 148, 497 (1847).
    """
    _check_sides(rows, columns)
    j, k = np.arange(rows)[:, None], np.arange(columns)[None, :]
    eigenvalues = 4 * np.sin(np.pi * j / (2 * rows)) ** 2 + 4 * np.sin(np.pi * k / (2 * columns)) ** 2
    return float(np.log(eigenvalues.ravel()[1:]).sum()) - math.log(rows * columns)


def _profiles(
    rows: int, columns: int, start: Profile, grown: Callable[[Profile, int], Iterable[Profile]]
) -> dict[Profile, int]:
    """The number of ways to fill a grid site by site, for every profile of its last `columns` sites.

    Args:
        start: the profile before the first site.
        grown: the profiles that may follow one at a site of this column.
    """
    _check_sides(rows, columns)
    counts = {start: 1}
    for _, j in itertools.product(range(rows), range(columns)):
        new: dict[Profile, int] = defaultdict(int)
        for profile, count in counts.items():
            for following in grown(profile, j):
                new[following] += count
        counts = new
    return counts


def _check_sides(rows: int, columns: int) -> None:
    if rows < 1 or columns < 1:
        raise ValueError(f"A grid needs at least one row and one column, got {rows} x {columns}.")
