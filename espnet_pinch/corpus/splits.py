"""Which sets of a recipe an utterance belongs to: by the splits that a corpus names, or by a hash of its speaker."""

import dataclasses
import hashlib
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence

from espnet_pinch.errors import UserError

SPEAKER, UTTERANCE = "speaker", "utterance"
_ALIKE = (("train", "training"), ("dev", "valid", "validation", "val", "development"), ("test", "testing"))
SPLIT_NAMES = frozenset(name for names in _ALIKE for name in names)


@dataclasses.dataclass(frozen=True)
class Take:
    """What a set takes of a split: the utterances whose point is at least ``low`` and under ``high``, in [0, 1]."""

    split: str
    low: float = 0.0
    high: float = 2.0


def words_of(option: str, given: str) -> list[str]:
    """The words of an option's value; one with spaces in it stands in quotes.

    Raises:
        UserError: a quotation mark is not closed.
    """
    try:
        return shlex.split(given)
    except ValueError as error:
        raise UserError(f"--{option}: cannot read {given!r}: {error}") from None


def point(key: str) -> float:
    """A number in [0, 1) that depends on ``key`` alone: evenly spread, and the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:6], "big") / (1 << 48)


class Splits:
    """The rule from splits to sets.

    Args:
        train_set, valid_set, test_sets: names of the recipe's sets.
        given: the user's own rule: "SET=SPLIT,SPLIT" with spaces between; "SET=SPLIT:0.05" takes that share of the
            speakers of SPLIT, which no other set then gets.
        dev_share, test_share: fractions of the speakers that the validation set and the test set get, if the corpus
            names no splits.

    Raises:
        UserError: a rule or a share cannot be read, or is of a set that the recipe has not.
    """

    def __init__(
        self,
        train_set: str,
        valid_set: str,
        test_sets: Sequence[str],
        given: str = "",
        dev_share: float = 0.05,
        test_share: float = 0.05,
    ):
        self.sets = tuple(dict.fromkeys((train_set, valid_set, *test_sets)))
        self._train, self._valid, self._tests = train_set, valid_set, test_sets
        self._given: dict[str, list[tuple[str, float]]] = {}
        for name, _, rule in map(self._cut, words_of("splits", given)):
            if name in self._given:
                raise UserError(f'--splits: the set {name} is there twice; give its splits together: "{name}=A,B"')
            self._given[name] = self._read_rule(rule)
        self._check_shares()
        if not (dev_share > 0 and test_share >= 0 and dev_share + test_share < 1):
            raise UserError(
                f"--dev_share {dev_share} and --test_share {test_share} must be fractions, together less than 1"
            )
        self._shares = (dev_share, test_share)

    def _cut(self, word: str) -> tuple[str, str, str]:
        name, equals, rule = word.partition("=")
        if not equals or not rule:
            raise UserError(f'--splits must be like "dev=validation test=test,other", not {word!r}')
        if name not in self.sets:
            raise UserError(f"--splits: {name} is no set of this recipe; it has {', '.join(self.sets)}")
        return name, equals, rule

    @staticmethod
    def _read_rule(rule: str) -> list[tuple[str, float]]:
        """Pairs of a split and the share that is taken of it, 1 for all that no share is taken of."""
        found = []
        for part in rule.split(","):
            match = re.fullmatch(r"(.+?)(?::(0?\.\d+))?", part)
            if not match:
                raise UserError(f'--splits: cannot read {rule!r}; it must be like "validation,other" or "train:0.05"')
            found.append((match[1], float(match[2] or 1)))
        return found

    def _check_shares(self) -> None:
        total: defaultdict[str, float] = defaultdict(float)
        for rule in self._given.values():
            for split, share in rule:
                if share <= 0:
                    raise UserError(f"--splits: the share of {split} must be over 0")
                total[split] += share if share < 1 else 0
        for split, share in total.items():
            if share > 1 + 1e-9:
                raise UserError(f"--splits: the shares of {split} are {share:g} together, more than all of it")

    def wants(self, split: str) -> bool:
        """Whether any set may take this split."""
        explicit = {name for rule in self._given.values() for name, _ in rule}
        free = [name for name in self.sets if name not in self._given]
        return split in explicit or any(split in _names_of(name) for name in free)

    def resolve(self, found: Mapping[str, str], others: Sequence[str] = ()) -> dict[str, list[Take]]:
        """What each set takes.

        Args:
            found: the splits of a corpus, "" for utterances without one; and a place of each, for messages.
            others: splits that the corpus has besides, and that no set wants.

        Raises:
            UserError: a set has no split, or only some of the utterances have one.
        """
        if set(found) == {""} and not self._given:
            return self._made()
        if not any(found):
            raise UserError(
                "the corpus names no splits: leave --splits out, and sets are made by a hash of the speaker"
            )
        if "" in found and len(found) > 1:
            named = next(name for name in found if name)
            raise UserError(
                f"{found['']} has no split, and {found[named]} has ({named}): give all of them one, or none"
            )
        rules = {name: self._given.get(name) or [(self._alike(name, found), 1.0)] for name in self.sets}
        takes: dict[str, list[Take]] = {name: [] for name in self.sets}
        for split in found:
            low = 0.0
            shares = [(name, share) for name, rule in rules.items() for of, share in rule if of == split and share < 1]
            for name, share in shares:
                takes[name].append(Take(split, low, low + share))
                low += share
            for name, rule in rules.items():
                takes[name] += [Take(split, low) for of, share in rule if of == split and share == 1]
        for name, rule in rules.items():
            lacking = [of for of, _ in rule if of not in found]
            if lacking:
                has = ", ".join([*filter(None, found), *others])
                advice = f'; or take a share of the training set: --splits "{name}={rules[self._train][0][0]}:0.05"'
                raise UserError(
                    f"the corpus has no split {lacking[0]} for the set {name}; it has: {has}. Say which it is: "
                    f'--splits "{name}=SPLIT"{"" if name == self._train else advice}'
                )
        return takes

    def _alike(self, name: str, found: Mapping[str, str]) -> str:
        """The split that a set takes without a rule: that of its own name, else one of a name that means the same."""
        return next((split for split in _names_of(name) if split in found), name)

    def _made(self) -> dict[str, list[Take]]:
        tests = [name for name in self._tests if name != self._valid]
        if len(tests) > 1 or self._valid == self._train or self._train in tests:
            raise UserError(
                "the corpus names no splits, so that a training, a validation and one test set can be made of it, and "
                f"the recipe has {', '.join(self.sets)}: give --train_set, --valid_set and --test_sets, or the corpus "
                "a column split"
            )
        dev, test = self._shares
        test = test if tests else 0.0
        made = {self._train: [Take("", test + dev)], self._valid: [Take("", test, test + dev)]}
        return made | {name: [Take("", 0.0, test)] for name in tests}


def _names_of(name: str) -> list[str]:
    """The names of splits that a set of this name may take, the best first."""
    own = [name, name.replace("_", "-")]
    return [*own, *(other for names in _ALIKE if name in names for other in names if other != name)]
