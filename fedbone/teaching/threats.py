"""The threat matrix: who could attack what, what stands against it, in which chapter, and the test that tries it."""

from __future__ import annotations

from typing import NamedTuple

from IPython.display import Markdown

from fedbone.errors import UserError
from fedbone.teaching.plots import as_table

CHAPTERS = tuple(f"{number:02d}" for number in range(1, 11))  # 00 shows the whole matrix
NOT_DEFENDED = "not defended"


class Threat(NamedTuple):
    """One row. test: file::name, in which the attempt meets its defence or, where there is none, works.

    untested: why no test tries it; empty where one does.
    """

    adversary: str
    asset: str
    attempt: str
    defence: str
    chapter: str
    remains: str
    test: str
    untested: str = ""

    @property
    def defended(self) -> bool:
        return self.defence != NOT_DEFENDED


def _rows(text: str) -> tuple[Threat, ...]:
    """A row in two lines: six fields apart by |, then the test, or "no test: " and why."""
    lines = [line.strip() for line in text.strip().splitlines()]
    rows = []
    for fields, test in zip(lines[::2], lines[1::2], strict=True):
        cells = [field.strip() for field in fields.split("|")]
        untested = test.removeprefix("no test: ") if test.startswith("no test: ") else ""
        rows.append(Threat(*cells, "" if untested else f"tests/{test}", untested))
    return tuple(rows)


THREATS = _rows("""
curious server | films | reads the films | they stay; only deltas leave | 04 | traces in the updates, next row
    test_syft_workers.py::test_the_coordinator_has_the_mock_and_not_one_private_film
curious server | updates | rebuilds films from one update | masks, Paillier: a sum at most | 08 | joints of one hospital
    test_secure_sum.py::test_less_than_the_whole_roster_is_unreadable_with_the_private_key
curious server | membership | tests whether a patient took part | patient-level noise | 06 | costs accuracy; never zero
    test_membership.py::test_under_patient_level_dp_the_attack_stays_below_its_limit
curious server | hospital sizes | reads the averaging weights | public constants | 05 | duration of training shows
    test_dp.py::test_film_counts_are_no_weights
curious server | labels | sees which joints a hospital labels | not defended | 05 | that list is public by design
    test_syft_workers.py::test_a_syft_hospital_says_what_it_labels_and_keeps_no_state
malicious server | films | sends weights that run a program | safetensors, no pickle | 03 | what the weights do
    test_vectors.py::test_foreign_checkpoints_are_refused
malicious server | films | sends code that copies films | review, sandbox, checked outputs | 04 | what the numbers say
    test_release.py::test_nothing_is_released_of_other_files
malicious server | films | crafts a model so that updates reveal | noise before sending | 06 | costs accuracy
    test_attacks.py::test_patient_level_noise_leaves_nothing
malicious server | updates | poses as hospitals to unmask one | signed offers and uploads | 08 | whoever issues the keys
    test_secure_sum.py::test_unsound_offers_are_refused_by_server_and_hospitals
malicious server | updates | claims a drop-out, subtracts sums | no sum is repeated | 08 | a drop-out costs the round
    test_secure_sum.py::test_hence_a_hospital_does_not_repeat_unless_its_staff_say_so
malicious server | model | hands out a wrong average | hospitals recompute the sum | 08 | each receives every upload
    test_secure_sum.py::test_recomputing_finds_what_the_server_changed
other hospital | updates | subtracts its own share | patient-level noise | 06 | two of three together isolate the third
    test_threats.py::test_two_hospitals_that_subtract_their_own_are_left_with_the_thirds_noise
other hospital | membership | tests patients on each round's model | noise, measured by attack | 07 | never zero
    test_membership.py::test_under_patient_level_dp_the_attack_stays_below_its_limit
other hospital | model | sends a harmful update (poisoning) | clipping bounds its size | 06 | its direction is free
    test_dp.py::test_no_hospital_moves_the_mean_by_more_than_its_share_of_the_clip
eavesdropper | updates | reads or alters traffic | TLS, certificates on both sides | 09 | who talks to whom, and when
    test_tls_probe.py::test_every_question_is_answered_well_by_grpc
eavesdropper | hospital sizes | infers them from traffic | updates of equal length | 04 | duration of training shows
    test_hospital.py::test_what_leaves_a_hospital_is_a_vector_of_the_models_size_and_k_booleans
outsider | membership | tests whether a film was used | noise, measured by attack | 07 | never zero
    test_membership.py::test_under_patient_level_dp_the_attack_stays_below_its_limit
outsider | model | copies it and passes it on | not defended | 10 | a question of contract, not of code
    no test: whoever may read a file can copy it, so there is nothing to try
stolen disk | model | reads stored models and updates | files encrypted at rest | 08 | keys must lie elsewhere
    test_vault.py::test_a_sealed_file_shows_neither_content_nor_key
stolen disk | films | reads pictures converted by chapter 01 | not defended | 01 | in clear: encrypt the disk
    test_dicom.py::test_png_is_grey_without_text_and_atomic
insider | films | reads names along with pictures | header left behind | 01 | anatomy, burned-in text
    test_deidentify_folder.py::test_no_plant_survives
insider | model | takes or changes a model | short-lived identity, roles, audit log | 09 | the administrator
    test_server.py::test_another_model_of_the_same_round_is_refused
insider | labels | changes labels on purpose | not defended | 02 | only gross errors are found
    test_threats.py::test_labels_that_are_moved_a_little_are_not_noticed
""")


def matrix() -> Markdown:
    """The whole table, each row with a link to its test."""
    columns = ("adversary", "asset", "attempt", "defence", "chapter", "remains", "tried in the test")
    return as_table(columns, [(*row[:3], _defence(row), row.chapter, row.remains, _link(row)) for row in THREATS])


def lit(chapter: str) -> Markdown:
    """The rows of ``chapter`` ("01" to "10"), and how many of all have been met by its end.

    Raises UserError for another chapter.
    """
    if chapter not in CHAPTERS:
        raise UserError("threat matrix", f"there is no chapter {chapter!r}", "Name one from '01' to '10'")
    own = [row for row in THREATS if row.chapter == chapter]
    columns = ("row lit here", "goes for", "attempt", "defence", "remains", "tried in the test")
    cells = [(f"{_mark(row)} {row.adversary}", *row[1:3], _defence(row), row.remains, _link(row)) for row in own]
    return Markdown(f"{as_table(columns, cells).data}\n\n{_so_far(chapter)}")


def _so_far(chapter: str) -> str:
    met = [row for row in THREATS if row.chapter <= chapter]
    defended = sum(row.defended for row in met)
    words = f"**{len(met)} of {len(THREATS)} rows are lit by the end of chapter {chapter}**: "
    return words + f"{_count(defended)} a defence (●), {_count(len(met) - defended)} none (○)."


def _count(rows: int) -> str:
    return f"{rows} {'has' if rows == 1 else 'have'}"


def _mark(row: Threat) -> str:
    return "●" if row.defended else "○"


def _defence(row: Threat) -> str:
    return row.defence if row.defended else f"**{row.defence}**"


def _link(row: Threat) -> str:
    """A sentence that leads to the test's file, with the test's full name for whoever points at it."""
    if row.untested:
        return f"none: {row.untested}"
    file, name = row.test.split("::")
    return f'[{name.removeprefix("test_").replace("_", " ")}](../{file} "{row.test}")'
