"""Times as people type them: ISO 8601, so long ago, or so long from now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from purelb_sm.domain.durations import parse_duration_s


def parse_when(text: str, now: datetime) -> datetime:
    """`now`, `2h ago`, `1h30m ago`, or an ISO 8601 date or time, in UTC where it names no zone. Raises ValueError."""
    words = text.strip().split()
    if words == ["now"]:
        return now
    if len(words) == 2 and words[1] == "ago":
        return _ago(words[0], now)
    try:
        return _iso(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a time: write 2026-11-24T03:12:00Z, 2026-11-24, or 2h ago") from None


def parse_until(text: str, now: datetime) -> datetime:
    """`2h` (from now), or an ISO 8601 date or time, in UTC where it names no zone. Raises ValueError."""
    try:
        return now + timedelta(seconds=parse_duration_s(text.strip()))
    except OverflowError:
        raise ValueError(f"{text} from now is after all time") from None
    except ValueError:
        pass
    try:
        return _iso(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a time: write 2026-12-24T08:00:00Z, 2026-12-24, or 2h") from None


def show(at: datetime | None) -> str:
    """To the second where that is exact, else to the microsecond; nothing for a time that has not come."""
    if at is None:
        return ""
    text = at.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")
    return text.removesuffix(".000000") + "Z"


def _iso(text: str) -> datetime:
    at = datetime.fromisoformat(text.strip())
    try:
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except OverflowError:
        raise ValueError("beyond all time") from None


def _ago(text: str, now: datetime) -> datetime:
    try:
        return now - timedelta(seconds=parse_duration_s(text))
    except OverflowError:
        raise ValueError(f"{text} ago is before all time") from None
