"""What the processor can do that decides how a model is to be computed."""

from espnet_pinch.asr.history import cpu_info

VNNI = {"avx512_vnni", "avx_vnni"}


def sums_overflow() -> bool:
    """Whether fast products of unsigned by signed 8-bit numbers are wrong here where numbers are large.

    x86 processors without VNNI, Intel's before 2019 and AMD's before 2022, add two such products in 16 bits, and what
    does not fit becomes the largest number that does.
    """
    flags = set(cpu_info().get("flags", "").split())  # no such line on other processors than x86
    return bool(flags) and not flags & VNNI
