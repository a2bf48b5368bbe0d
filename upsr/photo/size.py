"""The size that a user asks for."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """The size of results: `factor` times the source's, or `width` pixels wide."""

    factor: float | None = None
    width: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Size":
        """`2`, `1.5` or `800x`, with at most 9 digits before the point. Raises `ValueError` for another text."""
        if re.fullmatch(r"\d{1,9}x", text) and int(text[:-1]):
            return cls(width=int(text[:-1]))
        if re.fullmatch(r"\d{1,9}(\.\d+)?", text) and float(text):
            return cls(factor=float(text))
        raise ValueError(f"{text}: give a factor such as 2 or 1.5, or a width such as 800x")

    @property
    def suffix(self) -> str:
        """`_x2` or `_800x`: how names of results end."""
        return f"_{self.width}x" if self.width else f"_x{self.factor:g}"

    def of(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the result for a source of a size."""
        factor = self.factor or (self.width or width) / width
        return max(1, round(height * factor)), self.width or max(1, round(width * factor))
