"""Numbers as readers see them: three decimals, a true minus sign, a dash for what is not defined."""

import math
from collections.abc import Sequence

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def decimal(value: float, digits: int = 3) -> str:
    """Round a number for the eye.

    Examples
    --------
    >>> decimal(0.15149), decimal(-0.5, 1), decimal(-0.0001), decimal(float("nan"))
    ('0.151', '−0.5', '0.000', '–')
    """
    if math.isnan(value):
        return DASH
    text = f"{value:.{digits}f}"
    return (text[1:] if float(text) == 0 else MINUS + text[1:]) if text.startswith("-") else text


def signed(value: float) -> str:
    """Round a difference; a sign stands before all but zero.

    Examples
    --------
    >>> signed(0.012), signed(-0.012), signed(0.0001)
    ('+0.012', '−0.012', '0.000')
    """
    text = decimal(value)
    return f"+{text}" if value > 0 and float(text) > 0 else text


def interval(low: float, high: float, *, with_sign: bool = False) -> str:
    """Write an interval in brackets, a dash where it is not defined.

    Examples
    --------
    >>> interval(0.14, 0.163), interval(-0.01, 0.02, with_sign=True), interval(float("nan"), float("nan"))
    ('[0.140, 0.163]', '[−0.010, +0.020]', '–')
    """
    if math.isnan(low) or math.isnan(high):
        return DASH
    write = signed if with_sign else decimal
    return f"[{write(low)}, {write(high)}]"


def percent(share: float, replicates: int) -> str:
    """Write a probability counted over replicates: what all or none of them say is a bound, never 0 or 100 %.

    Examples
    --------
    >>> percent(0.973, 1000), percent(1.0, 1000), percent(0.0, 40), percent(float("nan"), 0)
    ('97.3 %', '> 99.9 %', '< 2.5 %', '–')
    """
    if math.isnan(share):
        return DASH
    least = max(100 / replicates, 0.1)
    if 100 * share < least:
        return f"< {decimal(least, 1)} %"
    if 100 * share > 100 - least:
        return f"> {decimal(100 - least, 1)} %"
    return f"{decimal(100 * share, 1)} %"


def level_of(level: float) -> str:
    """Write the level of an interval in per cent, without needless zeros.

    Examples
    --------
    >>> level_of(0.95), level_of(0.999)
    ('95', '99.9')
    """
    return f"{100 * level:.6g}"


def best_places(values: Sequence[float]) -> frozenset[int]:
    """Return where the highest value stands, all places where several look the same in three decimals.

    Of a single value nothing is the best.

    Examples
    --------
    >>> sorted(best_places([0.1511, 0.1514, 0.12, float("nan")]))
    [0, 1]
    """
    shown = {place: decimal(value) for place, value in enumerate(values) if not math.isnan(value)}
    if len(values) < 2 or not shown:
        return frozenset()
    best = shown[max(shown, key=lambda place: values[place])]
    return frozenset(place for place, text in shown.items() if text == best)
