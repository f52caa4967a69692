"""What is wrong with many items, in one line: the first, and how many more there are."""

import dataclasses

from espnet_pinch.errors import UserError


@dataclasses.dataclass
class Problems:
    """Counts what is wrong with items, and keeps the first alone.

    Attributes:
        where: what the items are in, for the message.
        first: the first problem; "" if there is none.
        count: the number of problems.
    """

    where: str
    first: str = ""
    count: int = 0

    def add(self, problem: str) -> None:
        self.first = self.first or problem
        self.count += 1

    def raise_first(self) -> None:
        """Raise UserError if there is a problem."""
        if self.count:
            more = f" (and {self.count - 1} more in {self.where})" if self.count > 1 else ""
            raise UserError(self.first + more)
