"""The options of programs that choose a search."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_pinch.errors import UserError

if TYPE_CHECKING:
    from espnet_pinch.asr.search import Search


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """``--lm``, ``--lm_weight``, ``--word_score``, ``--beam_size``. Needs no torch, which takes long."""
    group = parser.add_argument_group(
        "search", "Greedy search, or prefix beam search if --lm, --hotwords or --beam_size is given"
    )
    group.add_argument("--lm", type=Path, metavar="FILE", help="n-gram model of words, ARPA, plain or .gz")
    group.add_argument("--lm_weight", type=float, metavar="X", help="of the model's log-probabilities [0.5]")
    group.add_argument("--word_score", type=float, metavar="X", help="added for each word [0]")
    group.add_argument(
        "--hotwords", type=Path, metavar="FILE", help="words that are expected, with white space between"
    )
    group.add_argument("--hotword_score", type=float, metavar="X", help="added for each of them [5]")
    group.add_argument("--beam_size", type=int, metavar="N", help="prefixes that are kept [16]")


def make_search(args: argparse.Namespace, tokens: Sequence[str], blank: int) -> tuple[Search, dict]:
    """The search that the options choose, and what a record should say of it: {} of greedy search.

    What the language model lacks of the tokens is said on stderr.

    Args:
        args: with the options of ``add_search_options``.
        tokens: the token list.
        blank: index of the blank; -1 of a classifier, which has no search.

    Raises:
        OSError, UserError: as ``read_arpa``, ``check_spelling`` and ``read_hotwords``; or options do not fit together.
    """
    if args.lm is None and (args.lm_weight is not None or args.word_score is not None):
        raise UserError("--lm_weight and --word_score need --lm: without a language model they have no effect")
    if args.hotwords is None and args.hotword_score is not None:
        raise UserError("--hotword_score needs --hotwords")
    if args.lm is None and args.beam_size is None and args.hotwords is None:
        from espnet_pinch.asr.search import GreedySearch

        return GreedySearch(blank), {}
    if blank < 0:
        raise UserError("--lm, --hotwords and --beam_size are for speech recognisers, and this is a classifier")
    from espnet_pinch.asr.beam import BeamSearch
    from espnet_pinch.lm.arpa import read_arpa
    from espnet_pinch.lm.spelling import check_spelling, read_hotwords

    chosen = {
        key: value
        for key in ("beam_size", "lm_weight", "word_score", "hotword_score")
        if (value := getattr(args, key)) is not None
    }
    lm = read_arpa(args.lm) if args.lm else None
    if lm and (note := check_spelling(lm, tokens, str(args.lm))):
        print(f"note: {note}", file=sys.stderr)
    hotwords = read_hotwords(args.hotwords, tokens) if args.hotwords else []
    search = BeamSearch(tokens, blank, lm=lm, hotwords=hotwords, **chosen)
    about = {"lm": str(args.lm), "lm_weight": search.lm_weight, "word_score": search.word_score} if lm else {}
    if hotwords:
        about.update(hotwords=hotwords, hotword_score=search.hotword_score)
    return search, {"beam_size": search.beam_size, **about}
