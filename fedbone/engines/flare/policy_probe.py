"""Whether the parties run, and with the policy that fedbone writes: only then does a trial on copies tell of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from fedbone.custody.compliance import Evidence
from fedbone.engines.flare.kit import Kit, read_json
from fedbone.engines.flare.processes import party_processes
from fedbone.engines.flare.site_policy import authorization, hospital_resources, server_resources
from fedbone.errors import UserError

AS_WRITTEN = (
    "In the files of all {} parties resources.json, which names the server's login gate, and authorization.json are as "
    "this installation writes them."
)


def of_running_parties(parties: Sequence[Kit], probe: Callable[[], Evidence]) -> Evidence:
    """What ``probe`` found on copies; undecided unless all parties run. Raises UserError as ``require_policy`` does."""
    require_policy(parties)
    found = probe()
    down = [kit.name for kit in parties if not party_processes(kit, kit.role)]
    undecided = f"Not running: {', '.join(down)}. Start them and check again: a trial on copies says nothing of them."
    text = f"{found.text} {AS_WRITTEN.format(len(parties))}"
    return replace(found, text=text, undecided=undecided if down else found.undecided)


def require_policy(parties: Sequence[Kit]) -> None:
    """Raises UserError for a party's file that allows other than what fedbone writes, naming it and the difference."""
    for kit in parties:
        resources = server_resources(len(kit.hospitals)) if kit.role == "server" else hospital_resources()
        for name, ours in {"resources.json": resources, "authorization.json": authorization()}.items():
            found = read_json(kit.folder / "local" / name)
            ours = json.loads(json.dumps(ours))
            if found != ours:
                shown = "; ".join(list(differences(ours, found))[:3]) or "the order is another"
                remedy = "Put back what `deploy init` wrote, start the party again, and find out who changed it"
                raise UserError(f"{kit.name}/local/{name}", f"it is not as fedbone writes it: {shown}", remedy)


def differences(ours: object, found: object, place: str = "") -> Iterator[str]:
    """Where two JSON values that are not equal differ, in words."""
    ours, found = _by_id(ours), _by_id(found)
    if not isinstance(ours, dict) or not isinstance(found, dict):
        yield f"{place} is {json.dumps(found):.60}, not {json.dumps(ours):.60}"
        return
    for name in sorted(ours.keys() | found.keys()):
        where = f"{place} > {name}" if place else name
        if name not in found:
            yield f"{where} is missing"
        elif name not in ours:
            yield f"{where} was added"
        elif ours[name] != found[name]:
            yield from differences(ours[name], found[name], where)


def _by_id(value: object) -> object:
    """FLARE's list of components by their ids, if each has one of its own."""
    if isinstance(value, list) and value and all(isinstance(part, dict) and "id" in part for part in value):
        named = {str(part["id"]): part for part in value}
        return named if len(named) == len(value) else value
    return value
