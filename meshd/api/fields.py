"""One JSON object, read field by field; every complaint names its parameter. Pure."""

from __future__ import annotations

import math

from meshd.core.errors import BadInput

_ENORMOUS = 10**18  # beyond it float() may overflow; no field of ours is near


def check_text(value: str, param: str) -> str:
    """``value`` when UTF-8 can hold it and it has no NUL character; BadInput otherwise."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadInput(f"{param} holds a lone surrogate", param=param) from None
    if "\x00" in value:
        raise BadInput(f"{param} holds a NUL character", param=param)
    return value


def shown(name: str) -> str:
    """A key from outside, short and printable, for an error message."""
    return name[:60].encode("ascii", "backslashreplace").decode()


class Fields:
    """Typed access to a JSON object. Null means the same as absent. ``finish`` refuses what nobody asked for.

    Every method raises BadInput, the sender's fault, with ``param`` set to the field's name (after ``prefix``).
    """

    def __init__(self, body: object, *, prefix: str = "") -> None:
        if not isinstance(body, dict):
            raise BadInput(
                f"{prefix.rstrip('.') or 'the body'} must be a JSON object", param=prefix.rstrip(".") or None
            )
        self._body: dict[str, object] = body
        self._prefix = prefix
        self._read: set[str] = set()

    def param(self, name: str) -> str:
        """The full name of a field, as errors call it."""
        return shown(self._prefix + name)

    def raw(self, name: str) -> object:
        """The field as it came; None when absent."""
        self._read.add(name)
        return self._body.get(name)

    def _wrong(self, name: str, wanted: str) -> BadInput:
        return BadInput(f"{self.param(name)} must be {wanted}", param=self.param(name))

    def text(self, name: str, *, max_chars: int) -> str | None:
        """A string of at most ``max_chars`` characters that UTF-8 can hold, without NUL."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self._wrong(name, "a string")
        if len(value) > max_chars:
            raise self._wrong(name, f"at most {max_chars} characters long")
        return check_text(value, self.param(name))

    def required_text(self, name: str, *, max_chars: int) -> str:
        """As ``text``, but absent, null and empty are refused."""
        value = self.text(name, max_chars=max_chars)
        if not value:
            raise BadInput(f"{self.param(name)} is required", param=self.param(name))
        return value

    def boolean(self, name: str) -> bool | None:
        """True or false; 1 and "true" are neither."""
        value = self.raw(name)
        if value is None or isinstance(value, bool):
            return value
        raise self._wrong(name, "true or false")

    def integer(self, name: str, low: int, high: int) -> int | None:
        """A whole number within the bounds; 1.0 and true are none."""
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(name, f"a whole number between {low} and {high}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """A finite number within the bounds."""
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _ENORMOUS:
            raise self._wrong(name, f"a number between {low:g} and {high:g}")
        if not (math.isfinite(value) and low <= value <= high):
            raise self._wrong(name, f"a number between {low:g} and {high:g}")
        return float(value)

    def texts(self, name: str, *, max_items: int, max_chars: int) -> tuple[str, ...]:
        """A list of strings; absent is the empty one."""
        value = self.raw(name)
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) > max_items:
            raise self._wrong(name, f"a list of at most {max_items} strings")
        for item in value:
            if not isinstance(item, str) or len(item) > max_chars:
                raise self._wrong(name, f"a list of strings of at most {max_chars} characters")
            check_text(item, self.param(name))
        return tuple(value)

    def ignore(self, *names: str) -> None:
        """Accept these fields and do nothing with them."""
        self._read.update(names)

    def finish(self, hint: str = "") -> None:
        """Refuse a field that nobody read."""
        for name in self._body:
            if name not in self._read:
                known = ", ".join(sorted(self._read)) if len(self._read) <= 12 else ""
                raise BadInput(
                    f"unrecognised parameter: {self.param(name)}",
                    param=self.param(name),
                    hint=hint or (f"known here: {known}" if known else "this takes no parameters"),
                )
