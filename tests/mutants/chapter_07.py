import math

import numpy as np


def threshold(strangers, fpr):
    allowed = int(np.floor(fpr * len(strangers) + 1e-9))
    return np.sort(strangers)[::-1][allowed] if allowed < len(strangers) else -np.inf


def by_threshold(scores, member, fpr, least=True, bottom=True):
    """least: choose the lowest threshold that keeps the promise, else the highest; bottom: minus infinity may be it."""
    options = [t for t in [-math.inf] * bottom + sorted(scores) if np.mean(scores[~member] > t) <= fpr]
    return np.mean(scores[member] > options[0 if least else -1]) if options else 0.0


WRONG = {
    "found_at": {
        "accuses at the threshold too": lambda s, m, fpr: np.mean(s[m] >= threshold(s[~m], fpr)),
        "the highest threshold": lambda s, m, fpr: by_threshold(s, m, fpr, least=False),
        "never accuses all": lambda s, m, fpr: by_threshold(s, m, fpr, bottom=False),
        "fewer than the share": lambda s, m, fpr: by_threshold(s, m, np.nextafter(fpr, -1)),
        "a share of all, not of the strangers": lambda s, m, fpr: np.mean(s[m] > np.quantile(s, 1 - fpr)),
        "a quantile between two scores": lambda s, m, fpr: np.mean(s[m] > np.quantile(s[~m], 1 - fpr) - 0.1),
        "strangers in place of members": lambda s, m, fpr: by_threshold(s, ~m, fpr),
        "a share of everybody": lambda s, m, fpr: by_threshold(s, m, fpr) * np.mean(m),
        "low scores are the members'": lambda s, m, fpr: by_threshold(-s, m, fpr),
    },
    "rounds_needed": {
        "rounds down": lambda bits, z: int(bits * 2 * z**2 * math.log(2)),
        "rounds to the nearest": lambda bits, z: round(bits * 2 * z**2 * math.log(2)),
        "one more always": lambda bits, z: int(bits * 2 * z**2 * math.log(2)) + 2,
        "forgets the logarithm of two": lambda bits, z: math.ceil(bits * 2 * z**2),
        "forgets the two": lambda bits, z: math.ceil(bits * z**2 * math.log(2)),
        "a part of a round": lambda bits, z: bits * 2 * z**2 * math.log(2),
        "z is not squared": lambda bits, z: math.ceil(bits * 2 * z * math.log(2)),
        "the ten's logarithm": lambda bits, z: math.ceil(bits * 2 * z**2 * math.log10(2)),
    },
}


def found_at(scores, member, fpr):
    return np.count_nonzero(scores[member] > threshold(scores[~member], fpr)) / np.count_nonzero(member)


def rounds_needed(bits, z):
    rounds = 1
    while rounds / (2 * z**2 * math.log(2)) < bits:
        rounds += 1
    return np.int64(rounds)


RIGHT = {
    "found_at": {"sorted strangers": found_at, "every threshold": by_threshold},
    "rounds_needed": {"one by one": rounds_needed},
}
