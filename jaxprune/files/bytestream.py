"""Numbers of any size as bytes, and a cursor that reads them back without trusting them.

An unsigned number takes 7 bits a byte, low bits first, the eighth says that more follow (LEB128). A signed one is first
folded to 0, -1, 1, -2, ... = 0, 1, 2, 3, ...
"""

from typing import Any

from jaxprune.host import library

_LONGEST = 10  # bytes of a number; 63 bits fit


def unsigned(number: int) -> bytes:
    """An integer in [0, 2**63) as 1 to 9 bytes."""
    out = bytearray()
    while number >= 128:
        out.append(number % 128 + 128)
        number //= 128
    out.append(number)
    return bytes(out)


def signed(number: int) -> bytes:
    """An integer in [-2**62, 2**62) as 1 to 9 bytes."""
    return unsigned(2 * number if number >= 0 else -2 * number - 1)


class FormatError(ValueError):
    """A file, or the bytes of one leaf in it, that this library did not write, or that was damaged since.

    Raised before anything of the leaf is given out; the message names the leaf and the fault.
    """


def constriction() -> Any:
    """The entropy coders, imported when they are first used."""
    return library("constriction", "jaxprune[files]")


class Reader:
    """Takes numbers and stretches of bytes from the front of ``data``, and never reads past its end."""

    def __init__(self, data: bytes | memoryview):
        self.data = memoryview(data)
        self.at = 0

    @property
    def left(self) -> int:
        """How many bytes have not been taken."""
        return len(self.data) - self.at

    def take(self, number: int) -> memoryview:
        """The next ``number`` bytes."""
        if not 0 <= number <= self.left:
            raise FormatError(f"{number} bytes wanted, {self.left} left: truncated or damaged")
        self.at += number
        return self.data[self.at - number : self.at]

    def rest(self) -> memoryview:
        """All the bytes that are left."""
        return self.take(self.left)

    def unsigned(self, most: int = 2**63 - 1) -> int:
        """The next number, at most ``most``."""
        number = 0
        for place in range(_LONGEST):
            byte = self.take(1)[0]
            number += (byte % 128) << (7 * place)
            if byte < 128:
                if number > most:
                    raise FormatError(f"a number of {number}, where the most is {most}")
                return number
        raise FormatError("a number that does not end")

    def signed(self, least: int = -(2**31), most: int = 2**31 - 1) -> int:
        """The next signed number, in [least, most]."""
        folded = self.unsigned()
        number = -(folded + 1) // 2 if folded % 2 else folded // 2
        if not least <= number <= most:
            raise FormatError(f"a number of {number}, where [{least}, {most}] is allowed")
        return number

    def end(self) -> None:
        """Nothing may be left."""
        if self.left:
            raise FormatError(f"{self.left} bytes too many")
