"""The ids of the tokens that were accepted, so that none is accepted twice, whichever process looks and whenever."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from fedbone.custody.kept_json import KeptJson
from fedbone.errors import UserError

MOST_IDS = 4000  # remembered of one hospital: more would let it slow down everybody's checks
AGAIN = "Sign a new token for each message"


@dataclass(frozen=True)
class UsedIds:
    """The ids in the file ``path``, each until its token has expired for everybody.

    The file also holds the latest end of what it has forgotten. Should this machine's clock go back, a token that ends
    before is refused: its id may be among the forgotten ones. A clock that was days ahead blocks nobody for days so.
    """

    path: Path

    def note(self, where: str, site: str, token_id: str, until: int, now: float) -> None:
        """Note a token of ``site`` that nobody accepts from ``until`` on (s since 1970); on the disk when this returns.

        Raises UserError for an id that was noted before, of which ``where`` says what it was used for, and for a file
        that is damaged or gone, which is left as it is; OSError as ``write_json`` does.
        """
        with self._file.change() as content:
            ids, forgotten = content.get("ids", {}), content.get("forgotten", 0)
            if token_id in ids.get(site, {}):
                raise UserError(where, "its token was used before", f"{AGAIN}; if it was, find out who copied this one")
            if until <= forgotten:
                problem = f"this server's clock went back {forgotten - now:.0f} s or more, and the token is from before"
                raise UserError(where, problem, f"Compare this server's clock with a time server (NTP). {AGAIN}")
            gone = [end for ends in ids.values() for end in ends.values() if end <= now]
            kept = {name: {i: end for i, end in ends.items() if end > now} for name, ends in ids.items()}
            mine = kept.setdefault(site, {})
            if len(mine) >= MOST_IDS:
                problem = f"it has sent {len(mine)} tokens within minutes, and no more are remembered"
                raise UserError(where, problem, "Send fewer messages, and try again in some minutes")
            mine[token_id] = until
            state = {"forgotten": max([forgotten, *gone]), "ids": kept}
            content.update(state, sha256=_digest(state))

    @property
    def _file(self) -> KeptJson:
        remedy = "Stop the server for 15 minutes, so that every token expires; then delete the file and its lock"
        return KeptJson(self.path, "file of used token ids", _check, remedy)


def _check(content: dict) -> None:
    if content.keys() != {"forgotten", "ids", "sha256"}:
        raise ValueError("it has other fields")
    if content["sha256"] != _digest({"forgotten": content["forgotten"], "ids": content["ids"]}):
        raise ValueError("its checksum does not fit")


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
