"""What clients were told: every acknowledgement and every event of every stream, to be held against the history."""

import dataclasses
import threading
from typing import Any


@dataclasses.dataclass
class Sent:
    """Events that a client posted, named by a mark that their text holds."""

    mark: str
    # Set by the answer: the ids that were acknowledged.
    acknowledged: list[str] | None = None
    # The connection broke, or a proxy answered: the server may have it or not.
    unsure: bool = False


@dataclasses.dataclass
class SessionLedger:
    """One session as its clients saw it."""

    id: str
    sent: list[Sent] = dataclasses.field(default_factory=list)
    # One list a connection, in the order of arrival; previews and pings left out.
    streams: list[list[dict[str, Any]]] = dataclasses.field(default_factory=list)
    # Marks of the effects that its tool calls have.
    effects: list[str] = dataclasses.field(default_factory=list)
    # Marks that its tool calls appended to a file of the workspace.
    journal: list[str] = dataclasses.field(default_factory=list)


class Ledger:
    """All sessions of a run, and how often what was asked was refused."""

    def __init__(self) -> None:
        self.sessions: list[SessionLedger] = []
        self.turns = 0
        self.keyed = 0
        self.replayed = 0
        self.refusals: dict[str, int] = {}
        self._lock = threading.Lock()

    def session(self, session_id: str) -> SessionLedger:
        session = SessionLedger(session_id)
        with self._lock:
            self.sessions.append(session)
        return session

    def turn_sent(self) -> None:
        with self._lock:
            self.turns += 1

    def posted(self, keyed: bool, replayed: bool) -> None:
        with self._lock:
            self.keyed += keyed
            self.replayed += replayed

    def refused(self, what: str) -> None:
        with self._lock:
            self.refusals[what] = self.refusals.get(what, 0) + 1
