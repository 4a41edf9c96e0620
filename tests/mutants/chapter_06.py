import math

WRONG = {
    "sigma_for": {
        "forgets the weights": lambda weights, clip, z: clip * z,
        "the mean weight": lambda weights, clip, z: clip * z / len(weights),
        "the smallest weight": lambda weights, clip, z: min(weights) * clip * z,
        "divides by the noise multiplier": lambda weights, clip, z: max(weights) * clip / z,
        "forgets the clip": lambda weights, clip, z: max(weights) * z,
        "the weights' length": lambda weights, clip, z: math.hypot(*weights) * clip * z,
        "the first weight of a sorted list": lambda weights, clip, z: sorted(weights)[0] * clip * z,
        "the first weight": lambda weights, clip, z: weights[0] * clip * z,
        "the variance": lambda weights, clip, z: (max(weights) * clip * z) ** 2,
        "twice the clip": lambda weights, clip, z: 2 * max(weights) * clip * z,
    },
    "federation_mu": {
        "adds between hospitals": lambda spent: math.sqrt(
            sum(rounds / z**2 for runs in spent.values() for z, rounds in runs)
        ),
        "mu squared": lambda spent: max(sum(rounds / z**2 for z, rounds in runs) for runs in spent.values()),
        "adds mu": lambda spent: max(sum(math.sqrt(rounds) / z for z, rounds in runs) for runs in spent.values()),
        "the largest run": lambda spent: math.sqrt(max(rounds / z**2 for runs in spent.values() for z, rounds in runs)),
        "the last run": lambda spent: math.sqrt(
            max(sum(rounds / z**2 for z, rounds in runs[-1:]) for runs in spent.values())
        ),
        "one line for each noise multiplier": lambda spent: math.sqrt(
            max(sum(rounds / z**2 for z, rounds in dict(runs).items()) for runs in spent.values())
        ),
        "the mean": lambda spent: math.sqrt(
            sum(rounds / z**2 for runs in spent.values() for z, rounds in runs) / len(spent)
        ),
        "z is not squared": lambda spent: math.sqrt(
            max(sum(rounds / z for z, rounds in runs) for runs in spent.values())
        ),
        "the first hospital": lambda spent: math.sqrt(sum(rounds / z**2 for z, rounds in next(iter(spent.values())))),
    },
}


def federation_mu(spent):
    mu = 0.0
    for runs in spent.values():
        mu = max(mu, math.hypot(*(math.sqrt(rounds) / z for z, rounds in runs)))
    return mu


RIGHT = {
    "sigma_for": {"the largest product": lambda weights, clip, z: max(w * clip * z for w in weights)},
    "federation_mu": {"a loop": federation_mu},
}
