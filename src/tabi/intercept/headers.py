"""Headers: the fields of a message as hooks see them, as text, with case and order kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from tabi.wire.http_fields import Field, Fields, checked

Source = bytes | Iterable[Field] | Iterable[tuple[str, str]] | Mapping[str, str]


class Headers:
    """The fields of a message. Names are found in any case; what is not changed goes on octet for octet.

    Octets beyond ASCII are read as UTF-8, and what is not UTF-8 as surrogates (`os.fsdecode` does the same).

    Args:
        source: pairs of name and value, or a mapping. Of octets, all as they are: pairs of them, or the fields of a
            head of HTTP/1 (each with CRLF in front). These are sent without a check.

    Raises:
        ValueError: a name or a value cannot be sent.
    """

    __slots__ = ("_raw", "_source", "changed")

    def __init__(self, source: Source = ()) -> None:
        self._source = b""
        self._raw: list[Field] | None = None  # never changed in place: a hook that fails is undone by its old list
        self.changed = False
        if isinstance(source, bytes):
            self._source = source
            return
        pairs = source.items() if isinstance(source, Mapping) else source
        self._raw = [to_field(name, value) if isinstance(name, str) else (name, value) for name, value in pairs]  # type: ignore[arg-type, misc]

    @property
    def raw(self) -> list[Field]:
        """Name and value as octets, each value with the white space that came around it. Not to be changed in place."""
        if self._raw is None:
            self._raw = Fields.decode(self._source).raw
        return self._raw

    @raw.setter
    def raw(self, raw: list[Field]) -> None:
        self._raw = raw
        self.changed = True

    def __getitem__(self, name: str) -> str:
        """The value of the first field with this name. Raises KeyError."""
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def __setitem__(self, name: str, value: str) -> None:
        """Give the first field with this name another value and remove the others, or append it.

        Raises:
            ValueError: the name or the value cannot be sent.
        """
        fields = self._fields()
        fields.set(to_octets(name), to_octets(value))
        self.raw = fields.raw

    def __delitem__(self, name: str) -> None:
        """Remove all fields with this name. Raises KeyError where there is none."""
        if not self.remove(name):
            raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def __iter__(self) -> Iterator[str]:
        return (to_text(name) for name, _ in self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def __repr__(self) -> str:
        return f"Headers({', '.join(self)})"  # values may be secrets

    def items(self) -> list[tuple[str, str]]:
        """All names and values, in their order."""
        return [(to_text(name), to_text(value.strip(b" \t"))) for name, value in self.raw]

    def get(self, name: str, default: str | None = None) -> str | None:
        """The value of the first field with this name, else ``default``."""
        wanted = to_octets(name).lower()
        if self._raw is None and b":" not in wanted:  # 0.9 us; to take all fields apart 2.2 us
            source = self._source
            at = source.lower().find(b"\r\n%b:" % wanted)
            if at < 0:
                return default
            at += len(wanted) + 3
            end = source.find(b"\r\n", at)
            return to_text(source[at : end if end >= 0 else None].strip(b" \t"))
        for other, value in self.raw:
            if other.lower() == wanted:
                return to_text(value.strip(b" \t"))
        return default

    def get_all(self, name: str) -> list[str]:
        """The values of all fields with this name, in their order."""
        return [to_text(value) for value in self._fields().get_all(to_octets(name))]

    def add(self, name: str, value: str) -> None:
        """Append a field. Raises ValueError where the name or the value cannot be sent."""
        fields = self._fields()
        fields.add(to_octets(name), to_octets(value))
        self.raw = fields.raw

    def remove(self, name: str) -> int:
        """Remove all fields with this name; returns how many there were."""
        fields = self._fields()
        count = fields.remove(to_octets(name))
        if count:
            self.raw = fields.raw
        return count

    def encode(self) -> bytes:
        """The fields as HTTP/1 writes them, each with CRLF in front."""
        if self._raw is None:
            return self._source
        return self._fields().encode()

    def _fields(self) -> Fields:
        """A copy that may be changed."""
        fields = Fields()
        fields.raw = list(self.raw)
        return fields


def to_field(name: str, value: str) -> Field:
    """A field as `Headers.raw` has it. Raises ValueError where it cannot be sent."""
    return checked(to_octets(name), to_octets(value))


def to_text(octets: bytes) -> str:
    """Text of octets, without loss."""
    return octets.decode("utf-8", "surrogateescape")


def to_octets(text: str) -> bytes:
    """The other way round."""
    return text.encode("utf-8", "surrogateescape")
