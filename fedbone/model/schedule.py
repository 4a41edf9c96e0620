"""How often films are shown, and the learning rate: the same rules for one model and for a federation.

A round is what happens between two averagings: some epochs over a hospital's films, or only a part of one.
"""

from __future__ import annotations

from fedbone.config import Profile


def learning_rate(profile: Profile, round_index: int) -> float:
    """Adam's rate in a round."""
    return profile.learning_rate * rate_share(profile, round_index)


def rate_share(profile: Profile, round_index: int) -> float:
    """What is left of the first rate: decayed by ``round_decay`` a round, falling in a line to zero in the cooldown."""
    left = 1 - round_index / profile.rounds
    fall = min(1.0, left / profile.cooldown) if profile.cooldown else 1.0
    return profile.round_decay**round_index * fall


def passes(profile: Profile) -> int:
    """Passes over films in a round: its local epochs, or one over a part of the films."""
    return max(1, round(profile.local_epochs))


def parts_of_epoch(films: int, profile: Profile) -> int:
    """Rounds that share one epoch over ``films`` films: 1 for whole local epochs, never more than there are films."""
    return min(films, max(1, round(1 / profile.local_epochs)))


def films_shown(films: int, profile: Profile, rounds: int | None = None) -> int:
    """Film presentations of the first ``rounds`` rounds (default: all) of a trainer that has ``films`` films."""
    return sum(_sizes(films, profile, profile.rounds if rounds is None else rounds))


def steps_in_all(films: int, profile: Profile, rounds: int | None = None) -> int:
    """Optimiser steps of the first ``rounds`` rounds (default: all)."""
    sizes = _sizes(films, profile, profile.rounds if rounds is None else rounds)
    return sum(-(-size // profile.batch) for size in sizes)


def _sizes(films: int, profile: Profile, rounds: int) -> list[int]:
    """Films of each pass, as ``numpy.array_split`` cuts an epoch into parts: the first ones are larger by one."""
    parts = parts_of_epoch(films, profile)
    share, longer = divmod(films, parts)
    return [share + (index % parts < longer) for index in range(rounds) for _ in range(passes(profile))]
