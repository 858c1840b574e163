"""Weights f(<q,k_j>) / sum_l f(<q,k_l>) for other f: certified sensitivities and universal sets of all keys at once.

As with the distributions of ``scipy.stats``, the parameters make an object and the questions are its methods:
``Huber(1.0).universal_set(keys, 0.1)`` asks what :func:`lev.universal_set` asks for |x|^p.  Theory: 07 and 08.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lev import backend, bounds, lewis
from lev.ball import ball_brackets
from lev.checks import check_epsilon, check_positive, check_power
from lev.eliminate import eliminate
from lev.growth import growth_brackets
from lev.universal import UniversalSet, select

Enough = Callable[[float, float], bool]


class Function(ABC):
    """A function of <q,k>, and how the weights that it gives are bounded.

    >>> import lev
    >>> [f.growth for f in (lev.functions.Power(3.0), lev.functions.Huber(1.0), lev.functions.Tukey(1.0))]
    [3.0, 2.0, 2.0]
    """

    @property
    @abstractmethod
    def growth(self) -> float:
        """The power of x that it grows by at most."""

    @abstractmethod
    def __call__(self, x: Any) -> np.ndarray:
        """Return f(x), float64, entry by entry."""

    @abstractmethod
    def _brackets(self, keys: np.ndarray, asked: np.ndarray, enough: Enough) -> tuple[np.ndarray, np.ndarray]:
        """Return (lower, upper), (m,), for the rows ``asked``; refining may stop where ``enough`` says so."""

    def sensitivities(self, keys: Any, rows: Any = None) -> tuple[Any, Any]:
        """Return (lower, upper), each float64 (m,): proved bounds on the most weight any query gives to each key.

        ``keys`` is (n, d), any real dtype, and ``rows`` (m,) the indices of the keys asked for, by default all.
        Guarantee: lower <= sensitivity <= upper, rounding included.  How close they are, and the cost, depends on
        the function and stands with it.  Raises TypeError and ValueError for bad input.

        >>> import lev
        >>> lower, upper = lev.functions.Huber(1.0).sensitivities([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> lower.round(6), upper.round(6)
        (array([1. , 0.5, 0.5]), array([1. , 0.5, 0.5]))
        """
        array, family = backend.finite_keys(keys)
        asked = np.arange(len(array)) if rows is None else backend.indices("rows", rows, len(array))
        lower, upper = self._brackets(array, asked, _closed)
        return family.out(lower), family.out(upper)

    def universal_set(self, keys: Any, epsilon: float) -> UniversalSet:
        """Return the universal set of all keys at once: those that some query gives a weight of epsilon.

        ``keys`` is (n, d), any real dtype.  Guarantee: a superset, nothing is missed; ``exact`` says where nothing
        else is in it.  Its ``p`` is the growth of the function.  Raises TypeError and ValueError for bad input.

        >>> import numpy as np, lev
        >>> keys = np.tile(np.eye(2), (50, 1))
        >>> keys[7] *= 30
        >>> lev.functions.Tukey(1.0).universal_set(keys, 0.5).indices
        array([7])
        """
        array, family = backend.finite_keys(keys)
        epsilon = check_epsilon(epsilon)

        def decided(low: float, high: float) -> bool:
            return high < epsilon or low >= epsilon or _closed(low, high)

        lower, upper = self._brackets(array, np.arange(len(array)), decided)
        return select(array, family, lower, upper, epsilon, self.growth)


@dataclass(frozen=True)
class Power(Function):
    """|x|^p, as in :func:`lev.sensitivities` and :func:`lev.universal_set`, to the same guarantee.

    >>> import lev
    >>> lev.functions.Power(3.0)([-2.0, 1.0])
    array([8., 1.])
    """

    p: float

    def __post_init__(self) -> None:
        check_power(self.p)

    @property
    def growth(self) -> float:
        return float(self.p)

    def __call__(self, x: Any) -> np.ndarray:
        return np.abs(np.asarray(x, np.float64)) ** self.p

    def _brackets(self, keys: np.ndarray, asked: np.ndarray, enough: Enough) -> tuple[np.ndarray, np.ndarray]:
        return lewis.sensitivities(keys, self.p, asked)

    def universal_set(self, keys: Any, epsilon: float) -> UniversalSet:
        """Return :func:`lev.lewis.lp_universal_set` of the keys."""
        return lewis.lp_universal_set(keys, epsilon, self.p)


class Growing(Function):
    """A function that is even, grows, and is concave in x^2.

    As queries have any size, where it turns from x^2 to less does not change who can be heavy.
    Guarantee: superset.  Upper ends hold for every function of the class at once; lower ends are what queries of
    the function itself give.  Cost: O(n d log n) a key and O(n d^2) a round, at most 12 rounds, for each key that its
    first bounds leave undecided.  Theory: 07, other functions.

    >>> import lev
    >>> [isinstance(f, lev.functions.Growing) for f in (lev.functions.L1L2(), lev.functions.Power(4.0))]
    [True, False]
    """

    least: ClassVar[int]  # the power it grows by at least

    @property
    def growth(self) -> float:
        return 2.0

    def _brackets(self, keys: np.ndarray, asked: np.ndarray, enough: Enough) -> tuple[np.ndarray, np.ndarray]:
        found = eliminate(keys)
        lower, upper = np.zeros(found.count), np.zeros(found.count)
        which = np.flatnonzero(np.isin(found.where, asked))
        at = found.where[which]
        if which.size:
            lower[at], upper[at] = growth_brackets(found, type(self)(), self.least, which, enough)
        return lower[asked], upper[asked]


@dataclass(frozen=True)
class Huber(Growing):
    """x^2 / 2 up to ``delta`` and linear beyond.  Upper ends are those of every function between |x| and x^2.

    >>> import lev
    >>> lev.functions.Huber(1.0)([0.5, 1.0, 3.0])
    array([0.125, 0.5  , 2.5  ])
    """

    delta: float = 1.0
    least = 1

    def __post_init__(self) -> None:
        check_positive("delta", self.delta)

    def __call__(self, x: Any) -> np.ndarray:
        size = np.abs(np.asarray(x, np.float64))
        small = np.minimum(size, self.delta)
        return small * (size - small / 2)


@dataclass(frozen=True)
class L1L2(Growing):
    """2 (sqrt(1 + x^2 / 2) - 1): between x^2 and |x|, and smooth.  Bounds as for :class:`Huber`.

    >>> import lev
    >>> lev.functions.L1L2()([0.0, 1.0, 4.0]).round(4)
    array([0.    , 0.4495, 4.    ])
    """

    least = 1

    def __call__(self, x: Any) -> np.ndarray:
        size = np.abs(np.asarray(x, np.float64))
        return size * (size / (1 + np.hypot(1, size / math.sqrt(2))))


@dataclass(frozen=True)
class Tukey(Growing):
    """Tukey's biweight, c^2 / 6 (1 - (1 - (x / c)^2)^3), constant beyond ``c``.

    Upper ends count, by groups of keys, how many others must receive something too.

    >>> import lev
    >>> lev.functions.Tukey(1.0)([0.5, 1.0, 9.0]).round(4)
    array([0.0964, 0.1667, 0.1667])
    """

    c: float = 1.0
    least = 0

    def __post_init__(self) -> None:
        check_positive("c", self.c)

    def __call__(self, x: Any) -> np.ndarray:
        size = np.minimum(np.abs(np.asarray(x, np.float64)), self.c)
        square = (size / self.c) ** 2
        return size**2 / 2 * (1 - square * (1 - square / 3))


@dataclass(frozen=True)
class Ridge(Function):
    """<q,k_j>^2 / (c + sum_l <q,k_l>^2) over queries with |q| <= rho: the ridge leverage with lambda = c / rho^2.

    Guarantee: exact up to rounding, as :func:`lev.sensitivities` with p = 2.  Cost: O(n d^2).

    >>> import lev
    >>> lev.functions.Ridge(c=1.0, rho=1.0).sensitivities([[1.0, 0.0], [0.0, 3.0]])[1].round(6)
    array([0.5, 0.9])
    """

    c: float
    rho: float

    def __post_init__(self) -> None:
        check_positive("c", self.c)
        check_positive("rho", self.rho)
        check_positive("sqrt(c) / rho", self._root)

    @property
    def _root(self) -> float:
        return math.sqrt(self.c) / self.rho

    @property
    def growth(self) -> float:
        return 2.0

    def __call__(self, x: Any) -> np.ndarray:
        return np.square(np.asarray(x, np.float64))

    def _brackets(self, keys: np.ndarray, asked: np.ndarray, enough: Enough) -> tuple[np.ndarray, np.ndarray]:
        # the form of the keys with sqrt(lambda) I below them; those rows are never asked for
        return lewis.sensitivities(np.vstack([keys, self._root * np.eye(keys.shape[1])]), 2.0, asked)


@dataclass(frozen=True)
class BoundedSoftmax(Function):
    """exp(<q,k_j>) / sum_l exp(<q,k_l>) over queries with |q| <= rho (divide by sqrt(d) where the model does).

    Guarantee: lower >= (1 - 1e-6) upper unless |q||k| is so large that rounding forbids it.  Without a bound on |q|
    there is no small set, and asking for it is an error that says why.
    Cost: O(n d) a key, and O(n d^2) a round, about ten rounds, for each key left undecided by it.
    Theory: 08, softmax.

    >>> import lev
    >>> lev.functions.BoundedSoftmax(rho=1.0).universal_set([[3.0, 0.0], [-1.0, 0.1], [-1.0, -0.1]], 0.9).indices
    array([0])
    """

    rho: float = math.inf

    def __post_init__(self) -> None:
        if self.rho == math.inf:
            raise ValueError(
                "rho must be finite; got inf: over unbounded queries softmax has no small universal set, for every "
                "vertex of the convex hull of the keys receives a weight as near to 1 as you like from a query "
                "t * q with t large, where q separates it from the others"
            )
        check_positive("rho", self.rho)

    @property
    def growth(self) -> float:
        return math.inf

    def __call__(self, x: Any) -> np.ndarray:
        return np.exp(np.asarray(x, np.float64))

    def _brackets(self, keys: np.ndarray, asked: np.ndarray, enough: Enough) -> tuple[np.ndarray, np.ndarray]:
        return ball_brackets(keys.astype(np.float64), float(self.rho), asked, enough)


def _closed(low: float, high: float) -> bool:
    return low >= (1 - bounds.BRACKET_TOLERANCE) * high
