import math
import secrets

import gmpy2

from fedbone.teaching.exercises import given

(encrypt,) = given("08", "encrypt")


def blinded(m, n, r=None):
    return (1 + n) ** m * pow(r or secrets.randbelow(n - 1) + 1, n, n**2) % n**2


WRONG = {
    "hospitals_to_spill": {
        "the last that fits": lambda bits, width: (2**width - 1) // (2**bits - 1),
        "a level more than there is": lambda bits, width: math.ceil(2**width / 2**bits) + 1,
        "rounds up": lambda bits, width: math.ceil((2**width - 1) / (2**bits - 1)),
        "the powers alone": lambda bits, width: 2 ** (width - bits),
        "the powers and one": lambda bits, width: 2 ** (width - bits) + 1,
        "a float's part": lambda bits, width: (2**width - 1) / (2**bits - 1) + 1,
    },
    "forge": {
        "multiplies the ciphertext": lambda c, more, n: c * more % n**2,
        "raises it": lambda c, more, n: pow(c, more, n**2),
        "adds": lambda c, more, n: (c + more) % n**2,
        "one too many": lambda c, more, n: c * (1 + (1 + more) * n) % n**2,
        "does not touch it": lambda c, more, n: c,
        "modulo n": lambda c, more, n: c * blinded(more, n) % n,
        "a new ciphertext": lambda c, more, n: blinded(1 + more, n),
    },
    "difference": {
        "subtracts the ciphertexts": lambda c1, c2, n: (c1 - c2) // n,
        "the other way round": lambda c1, c2, n: -signed((c1 * pow(c2, -1, n**2) % n**2 - 1) // n, n),
        "never negative": lambda c1, c2, n: (c1 * pow(c2, -1, n**2) % n**2 - 1) // n,
        "the size alone": lambda c1, c2, n: abs(signed((c1 * pow(c2, -1, n**2) % n**2 - 1) // n, n)),
        "inverts modulo n": lambda c1, c2, n: signed((c1 * pow(c2, -1, n) % n**2 - 1) // n, n),
        "multiplies": lambda c1, c2, n: signed((c1 * c2 % n**2 - 1) // n, n),
        "forgets to take one away and to divide": lambda c1, c2, n: signed(c1 * pow(c2, -1, n**2) % n**2, n),
        "above n is negative": lambda c1, c2, n: (c1 * pow(c2, -1, n**2) % n**2 - 1) // n - n,
    },
    "encrypt_longer": {
        "the short form": lambda m, r, n: (1 + m * n) * pow(r, n**2, n**3) % n**3,
        "modulo n squared": lambda m, r, n: pow(1 + n, m, n**2) * pow(r, n**2, n**2) % n**2,
        "hidden with n alone": lambda m, r, n: pow(1 + n, m, n**3) * pow(r, n, n**3) % n**3,
        "not hidden": lambda m, r, n: pow(1 + n, m, n**3),
        "message and r exchanged": lambda m, r, n: pow(1 + n, r, n**3) * pow(m, n**2, n**3) % n**3,
        "in floats": lambda m, r, n: float(pow(1 + n, m, n**3) * pow(r, n**2, n**3) % n**3),
        "the last digit": lambda m, r, n: pow(1 + n, m, n**3) * pow(r, n**2, n**3) % n**3 + 1,
        "the sum": lambda m, r, n: (pow(1 + n, m, n**3) + pow(r, n**2, n**3)) % n**3,
        "no last modulo": lambda m, r, n: pow(1 + n, m, n**3) * pow(r, n**2, n**3),
    },
}


def signed(m, n):
    return m - n if 2 * m > n else m


def hospitals_to_spill(bits, width):
    hospitals = 1
    while hospitals * (2**bits - 1) < 2**width:
        hospitals += 1
    return hospitals


RIGHT = {
    "hospitals_to_spill": {"one by one": hospitals_to_spill},
    "forge": {
        "not hidden": lambda c, more, n: c * (1 + more * n) % n**2,
        "hidden": lambda c, more, n: c * encrypt(more, n) % n**2,
    },
    "difference": {"by gmpy2": lambda c1, c2, n: signed(int(gmpy2.divm(c1, c2, n**2)) // n, n)},
    "encrypt_longer": {
        "by gmpy2": lambda m, r, n: gmpy2.powmod(1 + n, m, n**3) * gmpy2.powmod(r, n * n, n**3) % n**3,
    },
}
