"""What one seed has found, kept in a file: seeds of one experiment may run side by side, on several GPUs."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from headrace.errors import ConfigurationError
from headrace.testing.rate_outcome import Outcome


@dataclass(frozen=True, slots=True)
class SeedFound:
    """Of one seed on one range of lengths.

    Attributes:
        case: of the experiment; the rows' names begin with it.
        lengths: of texts in tokens.
        seed: of arrivals and lengths.
        origin: where it was measured (``rows.origin``).
        outcomes: by way.
    """

    case: str
    lengths: tuple[int, int]
    seed: int
    origin: Mapping[str, object]
    outcomes: Mapping[str, Outcome]

    def save(self, path: Path) -> None:
        """Write it to a file, whose folder need not be there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            ConfigurationError: it is no such file.
        """
        try:
            found = json.loads(path.read_text())
            outcomes = {way: _outcome(**fields) for way, fields in found["outcomes"].items()}
            return cls(found["case"], tuple(found["lengths"]), int(found["seed"]), found["origin"], outcomes)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{path} does not hold what a seed has found: {error}") from error


@dataclass(frozen=True, slots=True)
class Joined:
    """What all seeds have found on one range of lengths; attributes as of ``SeedFound``, a list a way."""

    case: str
    lengths: tuple[int, int]
    origin: Mapping[str, object]
    outcomes: Mapping[str, Sequence[Outcome]]


def join(parts: Iterable[SeedFound]) -> list[Joined]:
    """Put seeds of the same case and lengths together, in their order.

    Raises:
        ConfigurationError: a way's seed is there twice, or parts of one case come from different commits or cards.
    """
    groups: defaultdict[tuple[str, tuple[int, int]], list[SeedFound]] = defaultdict(list)
    for part in sorted(parts, key=lambda part: (part.case, part.lengths, part.seed)):
        groups[part.case, part.lengths].append(part)
    return [_join(case, lengths, group) for (case, lengths), group in groups.items()]


def _join(case: str, lengths: tuple[int, int], group: Sequence[SeedFound]) -> Joined:
    label, first = f"{case} on {lengths[0]}-{lengths[1]} tokens", group[0].origin
    seen: set[tuple[int, str]] = set()
    outcomes: defaultdict[str, list[Outcome]] = defaultdict(list)
    for part in group:
        for field in ("commit", "card", "versions"):
            if part.origin.get(field) != first.get(field):
                raise ConfigurationError(
                    f"{label}: seeds of different {field} are not joined: {first.get(field)}, {part.origin.get(field)}"
                )
        for way, outcome in part.outcomes.items():
            if (part.seed, way) in seen:
                raise ConfigurationError(f"{label}: seed {part.seed} of {way} is there twice")
            seen.add((part.seed, way))
            outcomes[way].append(outcome)
    return Joined(case, lengths, _common(part.origin for part in group), dict(outcomes))


def _common(origins: Iterable[Mapping[str, object]]) -> dict[str, object]:
    """The first one, without its GPU where the others are not of the same: these are of one kind."""
    first, *others = origins
    is_one = all(other.get("card_id") == first.get("card_id") for other in others)
    return {field: value for field, value in first.items() if is_one or field != "card_id"}


def _outcome(
    critical: float, below: Sequence[Sequence[float]], rows_per_batch: float | None, own_rate: float | None
) -> Outcome:
    return Outcome(critical, tuple((p50, p99) for p50, p99 in below), rows_per_batch, own_rate)
