import hashlib
import hmac


def checked(claims, site, run, index, message, now, used, without=(), still=lambda now, exp: now <= exp):
    rules = {
        "sub": claims["sub"] == site,
        "run": claims["run"] == run,
        "round": claims["round"] == index,
        "sha256": claims["sha256"] == hashlib.sha256(message).hexdigest(),
        "exp": still(now, claims["exp"]),
        "jti": claims["jti"] not in used,
    }
    return all(holds for name, holds in rules.items() if name not in without)


def bad_lines(lines):
    expected, bad = "0" * 64, []
    for index, line in enumerate(lines):
        if line.split()[-1] != expected:
            bad.append(index)
        expected = hashlib.sha256(line.encode()).hexdigest()
    return bad


def without_start(lines):
    return next((i for i in bad_lines(lines) if i), -1)


WRONG = {
    "may_count": {
        **{
            f"does not look at {name}": lambda *given, name=name: checked(*given, without=(name,))
            for name in ("sub", "run", "round", "sha256", "exp", "jti")
        },
        "expired is still good": lambda *given: checked(*given, still=lambda now, exp: now >= exp),
        "believes the hash that came along": lambda *given: checked(*given, without=("sha256",)),
        "wants an id that was used": lambda *given: checked(*given[:-1], {given[0]["jti"]} - given[-1]),
        "always": lambda *given: True,
        "never": lambda *given: False,
        "compares hash and message": lambda claims, *given: checked(
            {**claims, "sha256": hashlib.sha256(claims["sha256"].encode()).hexdigest()}, *given
        ),
    },
    "first_bad": {
        "the edited line itself": lambda lines: max(-1, (bad_lines(lines) or [-1])[0] - 1),
        "the last bad line": lambda lines: (bad_lines(lines) or [-1])[-1],
        "counts from one": lambda lines: (bad_lines(lines) or [-2])[0] + 1,
        "does not look at the first line": without_start,
        "None where all is well": lambda lines: (bad_lines(lines) or [None])[0],
        "the number of lines where all is well": lambda lines: (bad_lines(lines) or [len(lines)])[0],
        "the number of bad lines": lambda lines: len(bad_lines(lines)) or -1,
        "hashes the text without its hash": lambda lines: next(
            (
                i
                for i, line in enumerate(lines)
                if i and line.split()[-1] != hashlib.sha256(lines[i - 1].rsplit(" ", 1)[0].encode()).hexdigest()
            ),
            -1,
        ),
        "looks below in place of above": lambda lines: next(
            (
                i
                for i, line in enumerate(lines[:-1])
                if lines[i + 1].split()[-1] != hashlib.sha256(line.encode()).hexdigest()
            ),
            -1,
        ),
    },
}


def may_count(claims, site, run, index, message, now, used):
    if (claims["sub"], claims["run"], claims["round"]) != (site, run, index):
        return 0
    if claims["exp"] < now or claims["jti"] in used:
        return 0
    return hmac.compare_digest(claims["sha256"], hashlib.sha256(message).hexdigest())


def first_bad(lines):
    above = ["0" * 64, *(hashlib.sha256(line.encode()).hexdigest() for line in lines)]
    bad = [not line.endswith(" " + digest) for line, digest in zip(lines, above[:-1], strict=True)]
    return bad.index(True) if True in bad else -1


RIGHT = {
    "may_count": {"one after the other, 0 and 1": may_count, "a table of rules": checked},
    "first_bad": {"a list of all digests": first_bad},
}
