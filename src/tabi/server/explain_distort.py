"""Which ``[[distort]]`` entries would act on a request, what they do, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from tabi.policy.distorts import Distort, Distorts
from tabi.policy.fault_words import format_share, words_of, words_of_schedule
from tabi.policy.networks import IP
from tabi.policy.quantities import format_moment
from tabi.session import Session


class DistortStep(msgspec.Struct):
    """The answer of one entry."""

    entry: str
    matched: bool
    why: str
    does: str | None = None
    """What it does; null if it does not match."""
    probability: float | None = None
    """Of being drawn; null if it does not match."""
    schedule: str | None = None
    """Its times, in words; null for always, or if it does not match."""
    acts: bool | None = None
    """Whether it acts at the time that is asked about, if its cycle does not say otherwise."""
    begins: str | None = None
    """When it acts next; null if it does now, or never again."""
    inside: bool | None = None
    """Whether it acts inside TLS, which an ``[[intercept]]`` has to open; null if it does not act on HTTP or TLS, or
    there is none."""


def explain_distortion(
    distorts: Distorts, session: Session, now: float, sni: str | None, addresses: Sequence[IP] | None = None
) -> list[DistortStep]:
    """The answer of each entry, in their order.

    Args:
        distorts: the entries.
        session: its destination is known, and what rules have had resolved.
        now: seconds since 1970.
        sni: the name in the client's hello. Default: that of the destination, or none.
        addresses: of the destination, if tabi resolves it: the first of them is known to what acts on a connection.
    """
    steps = distorts.explain(session, now, sni)
    if addresses and session.addresses is None:
        session.addresses = addresses[:1]
        later = distorts.explain(session, now, sni)
        session.addresses = None
        steps = [
            early if early.distort.fault is not None and early.distort.fault.at_dial else late
            for early, late in zip(steps, later, strict=True)
        ]
    return [
        step_of(step.distort, step.why, now) if step.matched else DistortStep(step.distort.label, False, step.why)
        for step in steps
    ]


def note_inside(found: list[DistortStep], opened: bool | None) -> None:
    """Note of entries whether they act inside TLS: whether an ``[[intercept]]`` opens it; None if there is none."""
    for step in found:
        if step.inside is not None:
            step.inside = opened


def step_of(distort: Distort, why: str, now: float) -> DistortStep:
    """An entry that matches."""
    begins = distort.schedule.begins(now)
    return DistortStep(
        distort.label,
        True,
        why,
        words_of(distort),
        distort.probability,
        words_of_schedule(distort.schedule) or None,
        begins == now,
        None if begins in (now, None) else format_moment(begins or 0),
        False if distort.on_http or distort.tls is not None else None,
    )


def lines_of(found: list[DistortStep]) -> Iterator[str]:
    """The answer for people."""
    width = max((len(step.entry) for step in found), default=0)
    for step in found:
        yield f"{step.entry:{width}}  {'yes' if step.matched else 'no':3}  {step.why}"
        if step.matched:
            yield f"{'':{width}}       {'; '.join(terms_of(step))}"


def terms_of(step: DistortStep) -> Iterator[str]:
    """What an entry does, how often and when."""
    yield f"{step.does}"
    if step.probability != 1:
        yield f"of {format_share(step.probability or 0)} of these sessions"
    if step.schedule is not None:
        when = "acts now" if step.acts else "never again" if step.begins is None else f"next at {step.begins}"
        yield f"{step.schedule} ({when})"
    if step.inside is False:
        yield "not inside TLS, since no [[intercept]] opens it"
