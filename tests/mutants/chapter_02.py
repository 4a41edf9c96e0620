import numpy as np


def exchanged(left_x, right_x, minority=lambda camp, others: len(camp) < len(others), nan=None):
    """nan: the camp that films without a label are put into."""
    films = range(len(left_x))
    known = [i for i in films if not np.isnan(left_x[i] - right_x[i])]
    camps = {True: {i for i in known if left_x[i] > right_x[i]}, False: {i for i in known if left_x[i] < right_x[i]}}
    if nan is not None:
        camps[nan] |= set(films) - set(known)
    return next((camp for camp, others in ((camps[k], camps[not k]) for k in camps) if minority(camp, others)), set())


WRONG = {
    "cropped_x": {
        "forgets the half pixel": lambda x, left, scale: (x - left) * scale,
        "adds half a pixel only": lambda x, left, scale: (x - left + 0.5) * scale,
        "scales first": lambda x, left, scale: (x + 0.5) * scale - 0.5 - left,
        "divides": lambda x, left, scale: (x - left + 0.5) / scale - 0.5,
        "halves the wrong way round": lambda x, left, scale: (x - left - 0.5) * scale + 0.5,
        "adds the columns": lambda x, left, scale: (x + left + 0.5) * scale - 0.5,
        "whole pixels": lambda x, left, scale: round((x - left + 0.5) * scale - 0.5),
    },
    "exchanged": {
        "left is always the larger x": lambda left_x, right_x: {int(i) for i in np.flatnonzero(left_x < right_x)},
        "left is never the larger x": lambda left_x, right_x: {int(i) for i in np.flatnonzero(left_x > right_x)},
        "the majority itself": lambda left_x, right_x: exchanged(
            left_x, right_x, lambda camp, others: len(camp) > len(others)
        ),
        "films without a label are in the camp below": lambda left_x, right_x: exchanged(left_x, right_x, nan=False),
        "films without a label are in the camp above": lambda left_x, right_x: exchanged(left_x, right_x, nan=True),
        "not like most, NaN included": lambda left_x, right_x: {
            i
            for i, sign in enumerate(np.sign(left_x - right_x))
            if sign != np.sign(np.nansum(np.sign(left_x - right_x)))
        },
        "the sign of the mean difference": lambda left_x, right_x: {
            int(i) for i in np.flatnonzero((left_x - right_x) * np.nanmean(left_x - right_x) < 0)
        },
        "a list": lambda left_x, right_x: sorted(exchanged(left_x, right_x)),
        "a mask": lambda left_x, right_x: np.isin(np.arange(len(left_x)), sorted(exchanged(left_x, right_x))),
    },
}


def by_median(left_x, right_x):
    sign = np.sign(left_x - right_x)
    return set(np.flatnonzero(sign * np.nanmedian(sign) < 0))


RIGHT = {
    "cropped_x": {"multiplied out": lambda x, left, scale: scale * x - scale * left + scale / 2 - 1 / 2},
    "exchanged": {"the median sign": by_median, "two camps": exchanged},
}
