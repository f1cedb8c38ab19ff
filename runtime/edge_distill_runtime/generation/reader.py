"""Generated tokens to text: characters, reasoning and answer, stop strings."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from typing import Literal

from edge_distill_runtime.text.chat import Piece, ReasoningMarkers, ReasoningParser, longest_overlap
from edge_distill_runtime.text.detokenizer import Detokenizer

__all__ = ["TextReader"]


class TextReader:
    """Reads one sequence token by token; what it has given out stays true when tokens are taken back.

    With `formatted`, the answer has a format of its own: it begins behind white space, and holds no markers.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        markers: ReasoningMarkers | None,
        *,
        inside: bool = False,
        stop: Sequence[str] = (),
        formatted: bool = False,
    ) -> None:
        self._detokenizer = detokenizer
        self._markers = markers
        self._inside = inside
        self._stop = tuple(stop)
        self._formatted = formatted
        self._given: dict[str, list[str]] = {"reasoning": [], "answer": []}
        self._given_length = 0
        self._start()

    def _start(self) -> None:
        self._stream = self._detokenizer.stream()
        self._parser = ReasoningParser(self._markers, inside=self._inside, once=self._formatted)
        self._parts: list[str] = []
        self._ends: list[int] = []  # characters of text up to every token
        self._length = 0
        self._held = ""  # of the answer, may become a stop string
        self._at_answer_start = True
        self._skip = self._given_length
        self.reasoning_tokens = 0
        self.stopped = False
        """Whether a stop string was met; nothing is read after it."""

    @property
    def kind(self) -> Literal["reasoning", "answer"]:
        """The kind of text that comes next."""
        return self._parser.kind

    @property
    def text(self) -> str:
        """Everything read, markers included, up to a stop string."""
        return "".join(self._parts)

    def given(self, kind: Literal["reasoning", "answer"]) -> str:
        """All text of one kind that was given out."""
        return "".join(self._given[kind])

    def tail(self, length: int = 48) -> str:
        """The last characters of the text."""
        tail = "".join(self._parts[-16:])
        return tail[-length:]

    def feed(self, token: int) -> list[Piece]:
        """The pieces of text that `token` decides."""
        if self.kind == "reasoning":
            self.reasoning_tokens += 1
        return self._read(self._stream.feed(token))

    def finish(self) -> list[Piece]:
        """What was held back, at the end."""
        if self.stopped:
            return []
        pieces = self._read(self._stream.finish())
        pieces += self._give(self._parser.finish())
        held, self._held = self._held, ""
        return pieces + self._count([Piece("answer", held)] if held else [])

    def retract(self, piece: Piece) -> None:
        """Take the last piece of its kind back, which nobody has seen."""
        self._given[piece.kind].pop()
        self._given_length -= len(piece.text)

    def restart(self, tokens: Iterable[int]) -> None:
        """Go back to a state in which only `tokens` were read; what was given out is not given again."""
        self._start()
        for token in tokens:
            self.feed(token)

    def count_before(self, position: int) -> tuple[int, str]:
        """How many tokens lie before character `position` of the text, and the characters between them and it."""
        count = bisect.bisect_right(self._ends, position)
        start = self._ends[count - 1] if count else 0
        return count, self.text[start:position]

    def _read(self, text: str) -> list[Piece]:
        if self.stopped:
            return []
        self._parts.append(text)
        self._length += len(text)
        self._ends.append(self._length)
        return self._give(self._parser.feed(text))

    def _give(self, pieces: list[Piece]) -> list[Piece]:
        if self._formatted:
            pieces = self._without_leading_space(pieces)
        if self._stop:
            pieces = self._before_stop(pieces)
        return self._count(pieces)

    def _without_leading_space(self, pieces: list[Piece]) -> list[Piece]:
        result = []
        for piece in pieces:
            text = piece.text
            if piece.kind == "answer" and self._at_answer_start:
                text = text.lstrip()
                self._at_answer_start = not text
            if text:
                result.append(Piece(piece.kind, text))
        return result

    def _before_stop(self, pieces: list[Piece]) -> list[Piece]:
        result = []
        for piece in pieces:
            if self.stopped:
                break
            if piece.kind == "reasoning":
                if self._held:
                    result.append(Piece("answer", self._held))
                    self._held = ""
                result.append(piece)
                continue
            text = self._held + piece.text
            at = min((at for stop in self._stop if (at := text.find(stop)) >= 0), default=-1)
            if at >= 0:
                self._stop_at(text[at:])
                text, self._held = text[:at], ""
            else:
                held = max(longest_overlap(text, stop) for stop in self._stop)
                text, self._held = text[: len(text) - held], text[len(text) - held :]
            if text:
                result.append(Piece("answer", text))
        return result

    def _stop_at(self, rest: str) -> None:
        """Cut the text before the stop string that `rest` begins with."""
        self.stopped = True
        text = self.text
        self._parts = [text[: text.rfind(rest)]]

    def _count(self, pieces: list[Piece]) -> list[Piece]:
        """Drop what was given out before a restart, and remember the rest."""
        result = []
        for piece in pieces:
            text = piece.text[self._skip :]
            self._skip = max(0, self._skip - len(piece.text))
            if text:
                self._given[piece.kind].append(text)
                self._given_length += len(text)
                result.append(Piece(piece.kind, text))
        return result
