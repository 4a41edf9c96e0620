import hashlib
import json


def chosen(jobs, least_films, numbers=("mean", "median"), enough=lambda films, least: films >= least):
    return {job["name"] for job in jobs if job["number"] in numbers and enough(job["films"], least_films)}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


WRONG = {
    "approved": {
        "more than the least number": lambda jobs, least: chosen(jobs, least, enough=lambda films, n: films > n),
        "any number": lambda jobs, least: {job["name"] for job in jobs if job["films"] >= least},
        "forgets the films": lambda jobs, least: chosen(jobs, 0),
        "the mean alone": lambda jobs, least: chosen(jobs, least, numbers=("mean",)),
        "the extremes too": lambda jobs, least: chosen(jobs, least, numbers=("mean", "median", "minimum", "maximum")),
        "ten, whatever is asked": lambda jobs, least: chosen(jobs, 10),
        "a list": lambda jobs, least: sorted(chosen(jobs, least)),
        "the jobs": lambda jobs, least: [job for job in jobs if job["name"] in chosen(jobs, least)],
        "those that it refuses": lambda jobs, least: {job["name"] for job in jobs} - chosen(jobs, least),
    },
    "job_digest": {
        "joins everything": lambda files: sha256(b"".join(k.encode() + files[k] for k in sorted(files))),
        "contents alone": lambda files: sha256(b"".join(sha256(files[k]).encode() for k in sorted(files))),
        "names alone": lambda files: sha256(repr(sorted(files)).encode()),
        "names and contents sorted apart": lambda files: sha256(repr((sorted(files), sorted(files.values()))).encode()),
        "the dictionary's order": lambda files: sha256(repr(files).encode()),
        "joins with a new line": lambda files: sha256(b"\n".join(k.encode() + b"\n" + files[k] for k in sorted(files))),
        "joins with colon and semicolon": lambda files: sha256(
            b";".join(k.encode() + b":" + files[k] for k in sorted(files))
        ),
        "sums hashes that do not bind name and content": lambda files: format(
            sum(int(sha256(part), 16) for k, v in files.items() for part in (k.encode(), v)), "066x"
        ),
        "bytes": lambda files: hashlib.sha256(repr(sorted(files.items())).encode()).digest(),
        "one digest for all": lambda files: sha256(b""),
        "Python's hash": lambda files: format(hash(tuple(sorted(files.items()))) % 2**64, "064x")[:16],
    },
}


def approved(jobs, least_films):
    safe = [job for job in jobs if job["number"].startswith("me")]
    return frozenset(job["name"] for job in safe if not job["films"] < least_films)


def by_lengths(files):
    digest = hashlib.blake2b()
    for path, content in sorted(files.items()):
        for part in (path.encode(), content):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest().upper()


RIGHT = {
    "approved": {"in two steps, a frozenset": approved},
    "job_digest": {
        "lengths, in capital letters": by_lengths,
        "hashes as JSON": lambda files: sha256(json.dumps(sorted((k, sha256(v)) for k, v in files.items())).encode()),
    },
}
