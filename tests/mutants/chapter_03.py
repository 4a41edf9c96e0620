import numpy as np
import torch


def around_peak_1d(logits, reach=2, weigh=lambda part: np.exp(part - part.max()), whole=False):
    peak = int(np.argmax(logits))
    weights = weigh(logits) if whole else np.zeros(len(logits))
    low = max(0, peak - reach)
    if not whole:
        weights[low : peak + reach + 1] = weigh(logits[low : peak + reach + 1])
    return weights @ np.arange(len(logits)) / weights.sum()


def wraps(logits):
    peak, weights = int(np.argmax(logits)), np.exp(logits - logits.max())
    index = np.arange(peak - 2, peak + 3) % len(logits)
    return weights[index] @ index / weights[index].sum()


def negative_start(logits):
    peak = int(np.argmax(logits))
    part = np.exp(logits[peak - 2 : peak + 3] - logits.max())
    return np.average(np.arange(len(logits))[peak - 2 : peak + 3], weights=part) if len(part) else float(peak)


WRONG = {
    "pck": {
        "one mean over all labels": lambda share, limit: np.nanmean(np.where(np.isnan(share), np.nan, share <= limit)),
        "a missing label is a miss": lambda share, limit: (share <= limit).mean(),
        "a missing label is found": lambda share, limit: 1 - (share > limit).mean(),
        "strictly below the limit": lambda share, limit: np.nanmean(
            np.nanmean(np.where(np.isnan(share), np.nan, share < limit), axis=0)
        ),
        "mean of the films' rates": lambda share, limit: np.nanmean(
            np.nanmean(np.where(np.isnan(share), np.nan, share <= limit), axis=1)
        ),
        "a joint without labels counts as never found": lambda share, limit: np.mean(
            np.nan_to_num(np.nanmean(np.where(np.isnan(share), np.nan, share <= limit), axis=0))
        ),
        "NaN comes out": lambda share, limit: np.mean(
            np.nanmean(np.where(np.isnan(share), np.nan, share <= limit), axis=0)
        ),
        "those that miss": lambda share, limit: np.nanmean(
            np.nanmean(np.where(np.isnan(share), np.nan, share > limit), axis=0)
        ),
    },
    "around_peak_1d": {
        "the whole heatmap": lambda logits: around_peak_1d(logits, whole=True),
        "one place only": lambda logits: around_peak_1d(logits, reach=1),
        "three places": lambda logits: around_peak_1d(logits, reach=3),
        "the peak alone": lambda logits: float(np.argmax(logits)),
        "exp overflows": lambda logits: around_peak_1d(logits, weigh=np.exp),
        "the logits are the weights": lambda logits: around_peak_1d(logits, weigh=np.abs),
        "the window goes round the end": wraps,
        "a slice that begins below zero": negative_start,
        "counts from the window": lambda logits: around_peak_1d(logits) - max(0, int(np.argmax(logits)) - 2),
    },
}


def pck(share, limit):
    rates = []
    for joint in np.transpose(share):
        labelled = joint[~np.isnan(joint)]
        if labelled.size:
            rates.append(np.count_nonzero(labelled <= limit) / labelled.size)
    return sum(rates) / len(rates)


def masked(logits):
    places = torch.arange(len(logits))
    far = (places - int(np.argmax(logits))).abs() > 2
    return (torch.softmax(torch.tensor(logits).masked_fill(far, -torch.inf), 0) * places).sum()


RIGHT = {"pck": {"a loop": pck}, "around_peak_1d": {"a mask, in torch": masked, "a slice": around_peak_1d}}
