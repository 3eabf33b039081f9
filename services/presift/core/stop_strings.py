"""Finds stop strings in text that arrives in pieces. The result does not depend on where the pieces begin and end.

The orchestrator's detokenizer cuts answers with it; if the target parses the answer, `target/sglang/messages.py` does.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on up to the first stop string to be complete; of several that end together, the longest counts.

    One Knuth-Morris-Pratt automaton per string: the cost is linear in the text.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, _borders(stop)) for stop in stops]
        # How many characters at the end of the text so far begin each string.
        self._matched = [0] * len(stops)
        self._held = ""
        self.found = False

    @property
    def may_have_begun(self) -> bool:
        """Whether the text so far has a stop string, or ends with the beginning of one."""
        return self.found or bool(self._held)

    def push(self, text: str) -> str:
        """The text that can be shown. What may be the beginning of a stop string is held back."""
        if self.found or not self._stops:
            return "" if self.found else text
        held = self._held + text
        for at, character in enumerate(text, start=len(self._held)):
            complete = self._advance(character)
            if complete:
                self.found = True
                return held[: at + 1 - complete]
        cut = len(held) - max(self._matched)
        self._held = held[cut:]
        return held[:cut]

    def finish(self) -> str:
        """The text that was held back, at the end of the answer."""
        return "" if self.found else self._held

    def _advance(self, character: str) -> int:
        """The length of the longest string that `character` completes, 0 for none."""
        complete = 0
        for number, (stop, borders) in enumerate(self._stops):
            matched = self._matched[number]
            while matched and stop[matched] != character:
                matched = borders[matched - 1]
            matched += stop[matched] == character
            self._matched[number] = matched
            if matched == len(stop):
                complete = max(complete, matched)
        return complete


def _borders(stop: str) -> list[int]:
    """For each prefix, the length of the longest proper prefix of it that also ends it."""
    borders = [0] * len(stop)
    size = 0
    for at in range(1, len(stop)):
        while size and stop[at] != stop[size]:
            size = borders[size - 1]
        size += stop[at] == stop[size]
        borders[at] = size
    return borders
