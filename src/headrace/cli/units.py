"""Numbers for people: as many digits as tell something, with their units."""


def duration(ms: float | None) -> str:
    """A time in the unit that suits it; "-" for none."""
    if ms is None:
        return "-"
    if ms < 999.5:
        return f"{ms:.0f} ms"
    seconds = ms / 1000
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, whole_s = divmod(round(seconds), 60)
    return f"{minutes} min {whole_s} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def count(number: int) -> str:
    """A count with its thousands apart."""
    return f"{number:,}".replace(",", " ")


def cost(ms: float) -> str:
    """What a batch costs, to three digits."""
    return f"{ms:.0f} ms" if ms >= 99.95 else f"{ms:.1f} ms" if ms >= 9.995 else f"{ms:.2f} ms"
