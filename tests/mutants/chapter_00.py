import numpy as np

from fedbone.teaching.exercises import given

(threats,) = given("00", "threats")

WRONG = {
    "next_global": {
        "counts every hospital alike": lambda weights, films: np.mean(weights, axis=0),
        "divides again by the hospitals": lambda weights, films: (
            np.average(weights, axis=0, weights=films) / len(films)
        ),
        "does not divide by all films": lambda weights, films: sum(w * n for w, n in zip(weights, films, strict=True)),
        "gives the weights to the wrong hospitals": lambda weights, films: np.average(
            weights, axis=0, weights=films[::-1]
        ),
        "one number for all": lambda weights, films: np.average(np.mean(weights, axis=1), weights=films),
        "takes the largest hospital's": lambda weights, films: weights[int(np.argmax(films))],
    },
    "undefended": {
        "what is defended": lambda asset: {
            t["adversary"] for t in threats if t["asset"] == asset and t["defence"] != "not defended"
        },
        "every asset": lambda asset: {t["adversary"] for t in threats if t["defence"] == "not defended"},
        "every adversary of the asset": lambda asset: {t["adversary"] for t in threats if t["asset"] == asset},
        "a list": lambda asset: [
            t["adversary"] for t in threats if t["asset"] == asset and t["defence"] == "not defended"
        ],
        "the attempts": lambda asset: {
            t["attempt"] for t in threats if t["asset"] == asset and t["defence"] == "not defended"
        },
    },
}


def undefended(asset):
    found = set()
    for threat in threats:
        if asset == threat["asset"] and threat["defence"].startswith("not "):
            found |= {threat["adversary"]}
    return frozenset(found)


RIGHT = {
    "next_global": {"a product": lambda weights, films: np.asarray(films, float) @ np.stack(weights) / np.sum(films)},
    "undefended": {"a loop": undefended},
}
