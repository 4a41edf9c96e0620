"""The card on which the owner of a hospital's data reads a submitted job and decides, live and as a static picture.

Whatever came with the job is shown as printable ASCII inside elements of our own, and what is cut is counted. GitHub,
nbviewer and a stored notebook show no widgets: display ``static()`` in the cell after the decision.
"""

from __future__ import annotations

import contextlib
import html
import re
import sys

import ipywidgets
from IPython.display import HTML

from fedbone.config import REPOSITORY
from fedbone.engines.owner import RUN_SCRIPT, Owner
from fedbone.engines.release import Arrays, Numbers, Policy
from fedbone.engines.review import FORM, INPUTS, LONGEST_LINE, Submission
from fedbone.engines.sandbox import protections
from fedbone.errors import UserError
from fedbone.teaching.shapes import FAINT, GROUND, INK, PALE

MOST_LINES, MOST_FILES = 400, 20  # that a card shows of one file, and of a job
LONGEST_TEXT = 500  # characters of a name or a line; a line of ``Submission.text`` is shorter
DIGITS = 16  # of a sha256
KINDS = {"+": "added", "-": "removed", "@": "place"}
HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")  # as difflib writes it, with its numbers of lines
OLD, NEW = "--- approved/", "+++ submitted/"
STYLE = f"""<style>
.fedbone-review {{ background: {GROUND}; color: {INK}; padding: 8px 12px; line-height: 1.4; white-space: normal;
  font-family: sans-serif; font-size: 13px; overflow-wrap: anywhere; color-scheme: light }}
.fedbone-review p, .fedbone-review ul, .fedbone-review summary {{ margin: 6px 0; color: {INK} }}
.fedbone-review code {{ background: none; color: {INK}; font-family: monospace; font-size: 12px }}
.fedbone-review pre.code {{ margin: 4px 0; border: 1px solid {PALE}; padding: 4px 0; overflow-x: auto;
  box-sizing: border-box; width: 0; min-width: 100%; background: {GROUND}; line-height: 1.35 }}
.fedbone-review pre.code code {{ display: block; width: max-content; min-width: 100%; padding: 0; white-space: pre;
  word-break: normal; overflow-wrap: normal }}
.fedbone-review pre.code span {{ display: block; padding: 0 8px; color: {FAINT} }}
.fedbone-review pre.code .added {{ background: #E3F4E8; color: #0B4F26 }}
.fedbone-review pre.code .removed {{ background: #FBE6E3; color: #8A1C0F }}
.fedbone-review pre.code .place {{ background: #EEEEEE }}
.fedbone-review .warning, .fedbone-review .approved {{ border-left: 5px solid #D55E00; padding-left: 8px }}
.fedbone-review .approved {{ border-left-color: #009E73 }}
</style>"""


class CodeReview:
    """Job ``name`` as it is now at ``owner``, to be approved or rejected with a reason; it is read this once.

    An approval is for exactly the ``submission`` that is shown, under ``policy`` and with ``repeats`` later jobs of the
    same code, see ``Owner.approve``. decision: "" until there is one. Works without a front end. Raises UserError as
    ``Owner.review`` does.
    """

    def __init__(self, owner: Owner, name: str, policy: Policy, repeats: int = 0) -> None:
        self._owner, self._policy, self._repeats = owner, policy, repeats
        self.submission = owner.review(name)
        changed, notes = _by_file(owner.changes(self.submission))
        if _sealed(self.submission):
            changed.pop("run.sh", None)
        self._changes = "; ".join([*(_summary(path, lines) for path, lines in changed.items()), *notes])
        texts, facts = _texts(self.submission), _facts(self.submission, policy, repeats)
        self._card = facts + _difference(changed, notes) + _files(self.submission, texts)
        self._hidden, self.decision, self._problem = _hidden(list(texts.values())), "", ""
        card = ipywidgets.HTML(STYLE + self._section(self._card), layout=ipywidgets.Layout(width="auto"))
        self._ending = ipywidgets.HTML(self._section(self._end()), layout=ipywidgets.Layout(width="auto"))
        self.widget = ipywidgets.VBox([card, self._ending, self._controls()])

    def decide(self, approve: bool, reason: str) -> None:
        """Approve or reject the submission that the card shows, as its buttons do, and show the decision.

        Raises UserError, which the card shows as well: an empty reason, a second decision, what the owner refuses.
        """
        self._problem = ""
        try:
            self._decide(approve, reason.strip())
        except Exception as error:
            # another's text may name paths of this machine
            self._problem = str(error) if isinstance(error, UserError) else f"It stopped with {type(error).__name__}."
            raise
        finally:
            self._ending.value = self._section(self._end())

    def _controls(self) -> ipywidgets.VBox:
        """A field for the reason over the two buttons."""
        wide = ipywidgets.Layout(width="auto", max_width="460px")
        reason = ipywidgets.Text(description="reason", placeholder="kept with the decision", layout=wide)
        buttons = []
        for approve, word in ((True, "✓ Approve"), (False, "✕ Reject")):
            button = ipywidgets.Button(description=word, tooltip=f"{word[2:]} the job that this card shows")
            button.on_click(lambda _, approve=approve: self._click(approve, reason.value))
            buttons.append(button)
        return ipywidgets.VBox([reason, ipywidgets.HBox(buttons)])

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        return {**self.widget._repr_mimebundle_(), "text/plain": self.alt()}

    def html(self) -> str:
        """The card with its decision, as HTML that needs no widgets, no script and nothing from elsewhere."""
        return STYLE + self._section(self._card + self._end())

    def static(self) -> HTML:
        """``html`` for display as the last line of a cell."""
        return HTML(self.html())

    def alt(self) -> str:
        """What the card is about: the job, and how many lines of which files it changes."""
        changes = _ascii(self._changes) or "none"
        return f"Review of job {_ascii(self.submission.name)} at {self.submission.hospital}. Changes: {changes}."

    def _click(self, approve: bool, reason: str) -> None:
        with contextlib.suppress(UserError):  # the card shows it
            self.decide(approve, reason)

    def _decide(self, approve: bool, reason: str) -> None:
        where = f"job {self.submission.name}"
        if self.decision:
            raise UserError(where, "it is decided already", "To decide again, run the cell that made the card")
        if not reason:
            raise UserError(where, "no reason is given", "Write one; it is kept with the decision")
        if approve:
            self._owner.approve(self.submission, reason, self._policy, self._repeats)
        else:
            self._owner.reject(self.submission.name, reason)
        self.decision = f"✓ Approved: {reason}" if approve else f"✕ Rejected: {reason}"
        self.widget.children = self.widget.children[:2]

    def _section(self, inside: str) -> str:
        return f'<section class="fedbone-review" aria-label="{html.escape(self.alt())}">{inside}</section>'

    def _end(self) -> str:
        """What is not shown, what stood in the way of a decision, and the decision."""
        kind = "approved" if self.decision.startswith("✓") else "warning"
        end = f'<p class="{kind}" role="status"><b>{html.escape(self.decision or "Not decided yet")}</b></p>'
        problem = f'<p class="warning" role="alert"><b>Not done.</b> {_plain(self._problem)}</p>'
        return _warning(self._hidden) + (problem if self._problem else "") + end


def _ascii(text: str) -> str:
    """Printable ASCII: the rest as escapes, blanks that push code out of sight as a number, our own paths as words."""
    text = re.sub(r"[^ -~]", lambda found: found[0].encode("unicode_escape").decode(), text)
    text = re.sub(" {60,}", lambda blanks: f" [{len(blanks[0])} BLANKS] ", text)
    for path, word in ((sys.executable, "[this Python]"), (str(REPOSITORY), "[this repository]")):
        text = text.replace(path.encode("ascii", "backslashreplace").decode(), word)
    more = len(text) - LONGEST_TEXT
    return text if more <= 0 else f"{text[:LONGEST_TEXT]} [{more:,} MORE CHARACTERS ARE NOT SHOWN]"


def _plain(text: str) -> str:
    return html.escape(_ascii(text))


def _warning(text: str) -> str:
    return f'<p class="warning"><b>Look out.</b> {text}</p>' if text else ""


def _sealed(submission: Submission) -> bool:
    return submission.files.get("run.sh") == RUN_SCRIPT.encode()


def _facts(submission: Submission, policy: Policy, repeats: int) -> str:
    """Who wants what to run here, with what, and what may leave."""
    software = ", ".join(f"{name} {v if len(v) < 64 else v[:DIGITS]}" for name, v in submission.software.items())
    leaves = [f"{file}: {_rule(rule)}; at most {rule.most_bytes:,} bytes" for file, rule in policy.items()]
    leaves = "".join(f"<li>{html.escape(line)}</li>" for line in leaves or ["nothing"])
    again = f"An approval also covers {repeats:,} later jobs of the same code, with any inputs." if repeats else ""
    start = "" if _sealed(submission) else "Its run.sh is not the one that starts the sandbox: it cannot be approved."
    return f"""<p><b>Job <code>{_plain(submission.name)}</code> at {html.escape(submission.hospital)}</b></p>
<p>Submitted by <b>{_plain(submission.submitted_by)}</b>. Digest <code>{submission.digest[:DIGITS]}</code> (the first
{DIGITS} of 64 digits; sha256 of all its files and of the software below).</p>
<p>It may hand out, each file checked and written anew by the hospital:</p><ul>{leaves}</ul>
<p>What the values in them tell is not checked. {again}</p>
<p>It will run with {html.escape(software)}. {html.escape(protections().statement())}</p>{_warning(start)}"""


def _rule(rule: Arrays | Numbers) -> str:
    """What a file of a policy holds, in plain words."""
    if isinstance(rule, Numbers):
        return f"the numbers {', '.join(rule.names)}, to six significant digits"
    sizes = [" × ".join(f"{n:,}" for n in shape) or "one" for _, shape in rule.expected.values()]
    arrays = zip(rule.expected.items(), sizes, strict=True)
    return f"the arrays {', '.join(f'{name} ({size} {dtype})' for (name, (dtype, _)), size in arrays)}, all finite"


def _by_file(diff: str) -> tuple[dict[str, list[str]], list[str]]:
    """A ``Submission.diff`` taken apart: path -> its lines with their signs, and what it says in words.

    A hunk ends where its own header says: a line of code can look like the next header.
    """
    files, notes, lines, old, new = {}, [], [], 0, 0
    for line in diff.split("\n"):
        if old > 0 or new > 0:
            old, new = old - (line[:1] != "+"), new - (line[:1] != "-")
            lines.append(line)
        elif found := HUNK.fullmatch(line):
            old, new = (int(count or 1) for count in found.groups())
            lines.append(line)
        elif line.startswith(NEW):
            lines = files.setdefault(line.removeprefix(NEW), [])
        elif line and not line.startswith(OLD):
            notes.append(line)
    return files, notes


def _summary(path: str, lines: list[str]) -> str:
    added, removed = (sum(line.startswith(sign) for line in lines) for sign in "+-")
    new = " (a new file)" if "".join(lines[:1]).startswith("@@ -0,0 ") else ""
    return f"{path}{new}: lines added {added:,}, removed {removed:,}"


def _difference(changed: dict[str, list[str]], notes: list[str]) -> str:
    """What changed, file by file, then what is told in words: inputs by size, software."""
    shown = [f"<p>{_plain(_summary(*some))}</p>{_code(*some)}" for some in list(changed.items())[:MOST_FILES]]
    said = [f"<p>{_plain(note)}</p>" for note in notes[:MOST_FILES]]
    more = sum(max(0, len(some) - MOST_FILES) for some in (changed, notes))
    left = _warning(f"{more:,} more changed files are not shown here.") if more else ""
    nothing = "" if changed or notes else "<p>Nothing: it is the same job.</p>"
    return f"<p><b>What differs from the job approved last</b></p>{''.join(shown + said)}{left}{nothing}"


def _code(path: str, lines: list[str]) -> str:
    """Lines with a sign each, in a box that scrolls sideways by itself, also with the keyboard."""
    kinds = (KINDS.get(line[:1], "same") for line in lines)
    rows = "".join(f'<span class="{k}">{_plain(ln)}\n</span>' for k, ln in zip(kinds, lines[:MOST_LINES], strict=False))
    box = f'<pre class="code" tabindex="0" role="region" aria-label="{_plain(path)}"><code>{rows}</code></pre>'
    more = len(lines) - MOST_LINES
    return box + (_warning(f"{more:,} more lines of {_plain(path)} are not shown here.") if more > 0 else "")


def _texts(submission: Submission) -> dict[str, list[str]]:
    """Path -> lines of what is read: neither inputs, nor syft's form, nor the start script that we know."""
    known = {FORM, "run.sh"} if _sealed(submission) else {FORM}
    paths = (path for path in sorted(submission.files) if not path.startswith(INPUTS) and path not in known)
    return {path: submission.text(path).split("\n") for path in paths}


def _files(submission: Submission, texts: dict[str, list[str]]) -> str:
    """Complete files behind a fold, then the others by size."""
    files = list(texts.items())[:MOST_FILES]
    shown = (f"<p>{_plain(path)}, {len(t):,} lines</p>{_code(path, [f' {line}' for line in t])}" for path, t in files)
    rest = [path for path in sorted(submission.files) if path not in texts]
    sizes = [f"{_plain(path)} ({len(submission.files[path]):,} bytes)" for path in rest[:MOST_FILES]]
    sizes += [f"{len(rest) - MOST_FILES:,} more"] if len(rest) > MOST_FILES else []
    told = f"<p>Inputs, syft's form and the hospital's own start script, by size: {', '.join(sizes)}.</p>"
    return f"<details><summary>Complete files</summary>{''.join(shown)}</details>{told if rest else ''}"


def _hidden(texts: list[list[str]]) -> str:
    """How much of the code no reader of the card sees, "" where it shows all."""
    files, shown = max(0, len(texts) - MOST_FILES), texts[:MOST_FILES]
    lines = sum(max(0, len(text) - MOST_LINES) for text in shown)
    ends = sum(len(line) > LONGEST_LINE for text in shown for line in text[:MOST_LINES])
    left = f"whole files {files:,}, lines {lines:,}, ends of long lines {ends:,}"
    told = f"Of the code this card leaves out: {left}. An approval covers them; submission.files holds them."
    return told if files + lines + ends else ""
