"""What a change is worth: effects with lower bounds, so that few boxes do not outrank many."""

import math
from collections.abc import Sequence

from pixelmill.tasks.comparison.results import Finding

__all__ = ["lower_mean", "lower_share", "rank_findings"]

_Z = 1.96
# Below this, neither an interval's lower end nor a person sees a change
_LEAST = 0.005


def lower_share(part: float, whole: float) -> float:
    """Lower end of the 95 % interval of a share.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.
    """
    if whole <= 0:
        return 0.0
    share = part / whole
    centre = share + _Z**2 / (2 * whole)
    spread = _Z * math.sqrt(share * (1 - share) / whole + _Z**2 / (4 * whole**2))
    return max(0.0, (centre - spread) / (1 + _Z**2 / whole))


def lower_mean(total: float, total_squares: float, count: float) -> float:
    """Lower end of the 95 % interval of a mean's size: 0 where the sign is not certain."""
    if count < 2:
        return 0.0
    mean = total / count
    variance = max(0.0, total_squares / count - mean**2) * count / (count - 1)
    return max(0.0, abs(mean) - _Z * math.sqrt(variance / count))


def rank_findings(found: Sequence[Finding]) -> tuple[Finding, ...]:
    """The largest first; what is next to nothing is left out."""
    kept = [one for one in found if one.low >= _LEAST]
    return tuple(sorted(kept, key=lambda one: (-one.low, one.class_name or "", one.what)))
