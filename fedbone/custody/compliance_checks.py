"""The questions that are asked of a deployment, where the law asks them, and what a probe can prove of each.

C20 is the tutorial's own list. The words beside an article are a pointer for counsel, not its text. Laws as of 2026:
GDPR = Regulation (EU) 2016/679; HIPAA = 45 CFR part 164; PIPL and DSL = China's Personal Information Protection Law and
Data Security Law (2021); GB/T 39725-2020 = its recommended guide for health data security.
"""

from __future__ import annotations

from fedbone.custody.compliance import Check

PROBES = {  # name: the statement that has to hold for the probe to return evidence
    "consent": "Each hospital's newest consent manifest is signed by its officer, in force, and for these films.",
    "tls_versions": "The server accepts TLS 1.2 and 1.3, and refuses 1.0 and 1.1.",
    "plain_text_refused": "The server does not answer a connection without TLS.",
    "server_certificate": "The server's certificate is by the deployment's authority and names its host.",
    "no_certificate_refused": "A client without a certificate is refused.",
    "foreign_certificate_refused": "A certificate with the right names from another authority is refused.",
    "login_forged_refused": "A login token that is missing, signed with another key or expired is refused.",
    "login_replayed_refused": "A login token that was used before is refused.",
    "update_edited_refused": "An update that was changed after signing, or is for another round, is refused.",
    "revoked_key_refused": "A login with a revoked key is refused, without a restart of the server.",
    "storage_sealed": "The deployment's folders hold sealed files (AES-256-GCM) and no weights in clear; the "
    "search finds weights where there are some.",
    "key_files_private": "Every secret key file can be read by its own account only.",
    "server_holds_no_private_key": "No hospital's private key (login, signing, decryption) is in the server's folders.",
    "audit_chain": "Every party's audit log verifies, and a changed, removed or inserted line is found in a copy.",
    "audit_complete": "Every finished round has its pull, push, aggregation and release entries.",
    "images_never_sent": "Only updates of the model's own length are accepted, and no more bytes than theirs are sent.",
    "minimum_hospitals": "A round with fewer accepted updates than agreed releases no model.",
    "privacy_budget": "What each patient has spent (epsilon, delta) is known and within the limit that was set.",
}
CONFIDENTIAL = "GDPR art. 5(1)(f), 32(1): protect against unauthorised use and loss, as fits the risk"
TRANSMISSION = "HIPAA 164.312(e)(1): guard health information while it is transmitted"
WHO_IS_IT = "HIPAA 164.312(d): verify that who seeks access is the one claimed"
ACCESS = "HIPAA 164.312(a)(1): access only for persons and programs that were granted it"
UNALTERED = "HIPAA 164.312(c)(1), (e)(2)(i): no improper alteration, at rest and on the way"
MEASURES = "PIPL art. 51: technical measures such as encryption and de-identification, limited authority"
SECURITY = "DSL art. 27: a data security system for the whole course of handling, with technical measures"
ENOUGH = "The security officers decide whether this is enough for the risk they found."


def _tried(name: str, probe: str, question: str, *sources: str, decide: str = ENOUGH) -> Check:
    return Check(name, question, sources, decide, probe, PROBES[probe])


def _asked(name: str, question: str, *sources: str, decide: str) -> Check:
    return Check(name, question, sources, decide)


TRANSPORT = (
    _tried("transport-1", "tls_versions", "Is everything sent over TLS 1.2 or newer?",
           "C20: TLS 1.2 or newer", CONFIDENTIAL, TRANSMISSION, MEASURES),
    _tried("transport-2", "plain_text_refused", "Does the server refuse whoever talks without encryption?",
           CONFIDENTIAL, TRANSMISSION),
    _tried("transport-3", "server_certificate", "Can a hospital tell the server from a false one?",
           WHO_IS_IT, CONFIDENTIAL),
)  # fmt: skip
ACCESS_CONTROL = (
    _tried("access-1", "no_certificate_refused", "Is a stranger kept out?", ACCESS, WHO_IS_IT, CONFIDENTIAL),
    _tried("access-2", "foreign_certificate_refused", "Is someone kept out who made the certificate himself?",
           ACCESS, WHO_IS_IT),
    _tried("access-3", "login_forged_refused", "Is nobody able to log in as another hospital?",
           WHO_IS_IT, "HIPAA 164.312(a)(2)(i): a unique name for each user", CONFIDENTIAL),
    _tried("access-4", "login_replayed_refused", "Is a login refused that was used already?", WHO_IS_IT),
    _tried("access-5", "revoked_key_refused", "Can access be ended at once?",
           "HIPAA 164.308(a)(3)(ii)(C): end access when it is no longer due", MEASURES,
           decide="The project's leads decide who may revoke, and how fast a loss must be reported to them."),
    _tried("integrity-1", "update_edited_refused", "Would a changed update be noticed?", UNALTERED, CONFIDENTIAL),
    _tried("integrity-2", "minimum_hospitals", "Does every released model rest on several hospitals?",
           "GDPR art. 25: protection by design and by default",
           decide="The hospitals decide on the minimum; with two, each can compute the other's update."),
)  # fmt: skip
STORAGE = (
    _tried("storage-1", "storage_sealed", "Are stored parameters encrypted (AES-256)?",
           "C20: stored parameters encrypted (AES-256)", CONFIDENTIAL, "HIPAA 164.312(a)(2)(iv): encryption at rest",
           MEASURES, SECURITY),
    _tried("storage-2", "key_files_private", "Are the keys unreadable for other accounts?", CONFIDENTIAL, ACCESS),
    _tried("storage-3", "server_holds_no_private_key", "Is the server unable to act for a hospital?",
           "GDPR art. 25, 32(1)", WHO_IS_IT),
    _asked("storage-4", "Can everything be restored after a loss, and was that tried?",
           "GDPR art. 32(1)(c): restore availability in time", "HIPAA 164.308(a)(7): contingency plan, backups",
           decide="Each party's IT lead: what is backed up, who holds the keys, when it was last rehearsed."),
    _asked("storage-5", "Are rooms, machines and old disks protected?", "HIPAA 164.310: physical safeguards",
           decide="Each party's security officer: who enters the room, how disks are wiped or destroyed."),
)  # fmt: skip
AUDIT = (
    _tried("audit-1", "audit_chain", "Would a changed audit log be noticed?",
           "C20: complete audit log of the federation", "HIPAA 164.312(b): record and examine activity",
           "GDPR art. 5(2): be able to show that the principles are kept"),
    _tried("audit-2", "audit_complete", "Does the log hold every access to a model?",
           "C20: complete audit log of the federation", "HIPAA 164.312(b); 164.308(a)(1)(ii)(D): review of activity",
           decide="Each party names who reads the log, how often, and how long it is kept."),
)  # fmt: skip
DATA = (
    _tried("data-1", "consent", "Did each hospital agree to this use of these films?",
           "C20: consent to data use", "GDPR art. 5(1)(b), 6(1), 9(2): purpose, legal basis, exception for health data",
           "HIPAA 164.508, 164.512(i): authorisation, or a ground for research without",
           "PIPL art. 6, 13, 28, 29: a clear purpose, a ground, sensitive data, separate consent",
           decide="Counsel and the ethics board decide on the legal basis and on whether patients must be asked: the "
           "manifest shows an officer's signature, never a patient's consent."),
    _tried("data-2", "images_never_sent", "Do films stay at the hospital, and no more leave it than needed?",
           "GDPR art. 5(1)(c): no more data than the purpose needs", "HIPAA 164.502(b): minimum necessary",
           "PIPL art. 6: the least that the purpose needs",
           decide="The data protection officer decides whether an update or a model can be personal data itself: "
           "notebook 07 gets films back from updates. See also opinion 28/2024 of the European Data Protection Board."),
    _tried("data-3", "privacy_budget", "Is it bounded what a model can tell about one patient?",
           "GDPR art. 25, recital 26: means reasonably likely to identify", "PIPL art. 73: what de-identified means",
           decide="The hospitals decide on a limit of epsilon; without differential privacy there is no bound."),
    _asked("data-4", "Are the films de-identified well enough, the pixels included?",
           "GDPR art. 4(5), recital 26", "HIPAA 164.514(a)-(b): an expert's opinion, or 18 identifiers removed",
           "PIPL art. 73", "GB/T 39725-2020, 10.2: de-identification",
           decide="Each data protection officer, or the expert: by the report of `fedbone deidentify` and by eye."),
    _asked("data-5", "Which class of data is it?", "DSL art. 21: classified and graded protection",
           "GB/T 39725-2020, 6.2: levels of health data",
           decide="Each hospital in China, with counsel: the level, and whether the data count as important data."),
    _asked("data-6", "How long are data, models and logs kept, and what can patients ask for?",
           "GDPR art. 5(1)(e), 12-22: storage limitation; information, access, erasure, objection",
           "PIPL art. 17, 44-47: information, access, correction, deletion",
           "HIPAA 164.316(b)(2)(i): six years for the security documentation",
           decide="Data protection officers and counsel: also what erasure means for a model that is trained already."),
)  # fmt: skip
ORGANISATION = (
    _asked("organisation-1", "Who is responsible for what, and by which contract?",
           "GDPR art. 26, 28: joint controllers; processors by contract",
           "HIPAA 164.308(b), 164.314(a): business associate contracts",
           "PIPL art. 20, 21, 23: joint, entrusted, passed on to another", "GB/T 39725-2020, 6.3: roles",
           decide="Counsel of every party, before the first run (notebooks/governance.md lists the points)."),
    _asked("organisation-2", "Was the impact on patients assessed before?",
           "GDPR art. 35: impact assessment (health data on a large scale)",
           "PIPL art. 55, 56: assess before, keep the record three years",
           "DSL art. 30: regular risk assessment (important data)",
           decide="Controllers, with advice of their data protection officers."),
    _asked("organisation-3", "Were the risks analysed, and is the protection tested regularly?",
           "HIPAA 164.308(a)(1)(ii)(A): risk analysis",
           "GDPR art. 32(1)(d), 32(2): regular tests; the risks to look at",
           decide="The security officers; this report is one test of many."),
    _asked("organisation-4", "Is the processing in the records?", "GDPR art. 30: records of processing activities",
           decide="Each controller and processor."),
    _asked("organisation-5", "Who reports a breach to whom, and by when?",
           "GDPR art. 33, 34: to the authority within 72 hours where feasible; to people at high risk",
           "HIPAA 164.308(a)(6), 164.404-164.410: incidents; notices", "PIPL art. 57", "DSL art. 29",
           "GB/T 39725-2020, 9.4: emergencies",
           decide="Data protection officers; rehearse it (notebooks/governance.md has a drill of an hour)."),
    _asked("organisation-6", "Does anything cross a border, and on what ground?",
           "GDPR art. 44-49: transfers to third countries",
           "PIPL art. 38-40: assessment, certification or standard contract; separate consent; storage at home",
           "DSL art. 31, 36: important data; requests of foreign authorities",
           decide="Counsel decides whether updates and models are data in this sense, though films stay."),
    _asked("organisation-7", "Are the people trained, and is someone in charge?",
           "HIPAA 164.308(a)(2), (a)(5): an officer; training", "PIPL art. 51, 52", "DSL art. 27",
           decide="The management of each party."),
    _asked("organisation-8", "Is use as a medical device ruled out?",
           "Regulation (EU) 2017/745, art. 2(1): the intended purpose decides",
           decide="Regulatory affairs of whoever would use a model. As shipped: teaching and research only."),
)  # fmt: skip
CHECKS = DATA + TRANSPORT + ACCESS_CONTROL + STORAGE + AUDIT + ORGANISATION
