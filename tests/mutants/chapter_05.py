import numpy as np

WRONG = {
    "fedavg": {
        "counts every hospital alike": lambda vectors, films: np.mean(vectors, axis=0),
        "does not divide by all films": lambda vectors, films: sum(v * n for v, n in zip(vectors, films, strict=True)),
        "divides again by the hospitals": lambda vectors, films: (
            np.average(vectors, axis=0, weights=films) / len(vectors)
        ),
        "divides by the hospitals instead": lambda vectors, films: (
            sum(v * n for v, n in zip(vectors, films, strict=True)) / len(vectors)
        ),
        "divides by the largest": lambda vectors, films: (
            sum(v * n for v, n in zip(vectors, films, strict=True)) / max(films)
        ),
        "over the wrong axis": lambda vectors, films: np.mean(vectors, axis=1),
        "the median": lambda vectors, films: np.median(vectors, axis=0),
        "the first one gets the last one's films": lambda vectors, films: np.average(
            vectors, axis=0, weights=films[::-1]
        ),
    },
    "repaired_average": {
        "still divides twice": lambda models, films: np.average(models, axis=0, weights=films) / len(models),
        "repairs it by forgetting the films": lambda models, films: np.mean(models, axis=0),
        "multiplies by the hospitals": lambda models, films: np.average(models, axis=0, weights=films) * len(models),
        "no division at all": lambda models, films: sum(m * n for m, n in zip(models, films, strict=True)),
        "the first model": lambda models, films: models[0],
        "divides by the films again": lambda models, films: np.average(models, axis=0, weights=films) / sum(films),
    },
    "robust": {
        "the mean": lambda updates: updates.mean(axis=0),
        "drops the largest alone": lambda updates: np.sort(updates, axis=0)[:-1].mean(axis=0),
        "drops the smallest alone": lambda updates: np.sort(updates, axis=0)[1:].mean(axis=0),
        "the first one": lambda updates: updates[0],
        "one number for all": lambda updates: np.median(updates),
        "the median of each update": lambda updates: np.median(updates, axis=1),
        "clips to ten": lambda updates: np.clip(updates, -10, 10).mean(axis=0),
        "weights by length": lambda updates: np.average(updates, axis=0, weights=np.linalg.norm(updates, axis=1)),
        "leaves out one that it fixed beforehand": lambda updates: updates[:4].mean(axis=0),
    },
}


def sorted_in_place(updates):
    updates.sort(axis=0)
    return updates[2]


def closest_to_the_others(updates):
    """Krum-like: the update nearest to its neighbours is an honest one here."""
    apart = np.linalg.norm(updates[:, None] - updates[None], axis=-1)
    return list(updates[np.argmin(np.sort(apart, axis=1)[:, :4].sum(axis=1))])


RIGHT = {
    "fedavg": {"a product": lambda vectors, films: np.array(films) @ np.array(vectors) / sum(films)},
    "repaired_average": {
        "as it stands, without the division": lambda models, films: sum(
            m * (n / sum(films)) for m, n in zip(models, films, strict=True)
        )
    },
    "robust": {
        "a trimmed mean": lambda updates: np.sort(updates, axis=0)[1:-1].mean(axis=0),
        "one of the updates, as a list": closest_to_the_others,
        "in place": sorted_in_place,
    },
}
