import math

import numpy as np


def mean_of(xy, weights):
    return weights @ xy / weights.sum()


def chosen(labelled):
    return labelled if labelled.any() else ~labelled


WRONG = {
    "patients_needed": {
        "rounds down": lambda share: int(math.log(0.05) / math.log(1 - share)),
        "not a whole number": lambda share: math.log(0.05) / math.log(1 - share),
        "the rule of three": lambda share: math.ceil(3 / share),
        "one patient in the share": lambda share: math.ceil(1 / share),
        "two-sided": lambda share: math.ceil(math.log(0.025) / math.log(1 - share)),
        "the confidence in place of the rest": lambda share: math.ceil(math.log(0.95) / math.log(1 - share)),
        "the share itself": lambda share: math.ceil(math.log(0.05) / math.log(share)),
        "one more": lambda share: math.ceil(math.log(0.05) / math.log(1 - share)) + 1,
    },
    "vote": {
        "over all models": lambda xy, confidence, labelled: mean_of(xy, confidence),
        "without the confidences": lambda xy, confidence, labelled: xy[chosen(labelled)].mean(axis=0),
        "nothing where nobody labels": lambda xy, confidence, labelled: mean_of(xy, confidence * labelled),
        "the surest model": lambda xy, confidence, labelled: xy[np.argmax(confidence * chosen(labelled))],
        "zero where nobody labels": lambda xy, confidence, labelled: (
            mean_of(xy, confidence * labelled) if labelled.any() else np.zeros(2)
        ),
        "the plain mean where nobody labels": lambda xy, confidence, labelled: (
            mean_of(xy, confidence * labelled) if labelled.any() else xy.mean(axis=0)
        ),
        "does not divide": lambda xy, confidence, labelled: (confidence * chosen(labelled)) @ xy,
        "divides by all confidences": lambda xy, confidence, labelled: (
            (confidence * chosen(labelled)) @ xy / confidence.sum()
        ),
        "divides by the models": lambda xy, confidence, labelled: (
            (confidence * chosen(labelled)) @ xy / chosen(labelled).sum()
        ),
        "those that were not taught it": lambda xy, confidence, labelled: mean_of(xy, confidence * ~labelled),
        "a threshold on the confidence": lambda xy, confidence, labelled: mean_of(
            xy, confidence * chosen(labelled) * (confidence > 0.5)
        ),
    },
    "status_of": {
        "not tried has failed": lambda tried, held, undecided: (
            "failed" if not held else "needs a human" if undecided else "proved"
        ),
        "undecided comes before failed": lambda tried, held, undecided: (
            "needs a human" if not tried or undecided else "proved" if held else "failed"
        ),
        "undecided does not matter": lambda tried, held, undecided: (
            "needs a human" if not tried else "proved" if held else "failed"
        ),
        "never asks a human": lambda tried, held, undecided: "proved" if held else "failed",
        "believes what was not tried": lambda tried, held, undecided: (
            "needs a human" if undecided or not held else "proved"
        ),
        "a truth value": lambda tried, held, undecided: bool(tried and held and not undecided),
        "does not look whether it was tried": lambda tried, held, undecided: (
            ("needs a human" if undecided else "proved") if held else "failed" if tried else "needs a human"
        ),
        "capital letters": lambda tried, held, undecided: (
            "Needs a human" if not tried else "Failed" if not held else "Needs a human" if undecided else "Proved"
        ),
    },
}


def patients_needed(share):
    patients, chance = 0, 1.0
    while chance > 0.05:
        patients, chance = patients + 1, chance * (1 - share)
    return float(patients)


def vote(xy, confidence, labelled):
    rows = [i for i in range(len(xy)) if labelled[i] or not any(labelled)]
    total = sum(confidence[i] for i in rows)
    return tuple(sum(confidence[i] * xy[i][axis] for i in rows) / total for axis in (0, 1))


def status_of(tried, held, undecided):
    match tried, held, undecided:
        case True, True, "":
            return "proved"
        case True, False, _:
            return "failed"
    return "needs a human"


RIGHT = {
    "patients_needed": {"one by one, a float": patients_needed},
    "vote": {"loops, as a tuple": vote},
    "status_of": {"by pattern": status_of},
}
