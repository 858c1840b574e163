"""Checks of scalar arguments: each returns the clean value or names the argument and what came."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

_LARGEST_POWER, _LARGEST_DIM = 2**10, 2**20


def check_epsilon(epsilon: Any) -> float:
    """Return epsilon as a float in (0, 1]."""
    return check_fraction("epsilon", epsilon)


def check_fraction(name: str, value: Any) -> float:
    """Return value as a float in (0, 1]."""
    number = _real(name, value)
    if not 0 < number <= 1:
        raise ValueError(f"{name} must be in (0, 1]; got {value!r}")
    return number


def check_answerable(epsilon: Any, held: float) -> float:
    """Return epsilon, by default that of a sketch, ``held``, which it may not be below."""
    value = held if epsilon is None else check_epsilon(epsilon)
    if value < held:
        raise ValueError(f"epsilon must be at least the sketch's {held:g}, for keys below it are gone; got {value:g}")
    return value


def check_power(p: Any) -> float:
    """Return p as a float in [2^-10, 2^10]."""
    if not 1 / _LARGEST_POWER <= (number := check_positive("p", p)) <= _LARGEST_POWER:
        raise ValueError(f"p must be in [2^-10, 2^10]; got {p!r}")
    return number


def check_positive(name: str, value: Any) -> float:
    """Return value as a finite float > 0."""
    number = _real(name, value)
    if not (0 < number < math.inf):
        raise ValueError(f"{name} must be positive and finite; got {value!r}")
    return number


def check_heads(heads: Any) -> tuple[int, ...]:
    """Return heads as a tuple of positive integers."""
    if isinstance(heads, str) or not isinstance(heads, Iterable):
        raise TypeError(f"heads must be a tuple of integers; got {heads!r}")
    return tuple(check_integer("heads", size, 1) for size in heads)


def check_span(name: str, span: Any, most: float = math.inf) -> float:
    """Return a span of rows or of time as a finite float in (0, most]."""
    value = _real(name, span)
    if not (0 < value < math.inf and value <= most):
        raise ValueError(
            f"{name} must be positive and {'finite' if most == math.inf else f'<= {most:g}'}; got {span!r}"
        )
    return value


def check_integer(name: str, value: Any, least: int) -> int:
    """Return value as an int >= least."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer; got {value!r}")
    if value.__index__() < least:
        raise ValueError(f"{name} must be >= {least}; got {value!r}")
    return int(value.__index__())


def check_dim(dim: Any) -> int:
    """Return dim as an int in [1, 2^20]."""
    if (number := check_integer("dim", dim, 1)) > _LARGEST_DIM:
        raise ValueError(f"dim must be at most 2^20; got {dim!r}")
    return number


def _real(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a real number; got {value!r}")
    try:
        return float(value)
    except OverflowError:  # of a long integer or a fraction
        return -math.inf if value < 0 else math.inf
