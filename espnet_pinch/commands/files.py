"""The sound files that commands take: found in folders, gone through one by one."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from espnet_pinch.commands.shared import printable
from espnet_pinch.errors import one_line
from espnet_pinch.explain import explain

BAR = "{l_bar}{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"


@dataclasses.dataclass
class Audio:
    """Sound files that were found.

    Attributes:
        files: ``{path: seconds}``, 0 where the length is not known.
        names: ``{path: its name}`` within the folder that was given.
        problems: what is wrong with a path, one line each.
        notes: what was left out.
    """

    files: dict[Path, float] = dataclasses.field(default_factory=dict)
    names: dict[Path, Path] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def gather(paths: list[Path]) -> Audio:
    """The sound files of files and folders."""
    from espnet_pinch.sound.find import find_audio
    from espnet_pinch.sound.read import seconds_of

    audio = Audio()
    for path in paths:
        try:
            found = find_audio(path)
        except OSError as error:
            audio.problems.append(explain(error) or str(error))
            continue
        audio.problems += found.problems
        if found.companions:
            audio.notes.append(f"note: {path}: {found.companions} files ._* of macOS, which hold no sound, are skipped")
        if not found.files:
            audio.problems.append(f"{path}: no sound file in this folder")
        audio.files.update((file, seconds_of(file)) for file in found.files)
        audio.names.update((file, file.relative_to(path) if file != path else Path(file.name)) for file in found.files)
    return audio


def over_files(
    audio: Audio, work: Callable[[Path, Callable[[float], None]], Callable[[], None]], done_to_them: str
) -> int:
    """Work on sound files, with a bar on stderr where that is a terminal. What fails is named on stderr.

    Args:
        audio: what ``gather`` has found.
        work: on a file; it calls its second argument with the seconds that are done, and returns what prints the
            result.
        done_to_them: such as "transcribed".

    Returns: the number of files and folders that failed.
    """
    from tqdm import tqdm

    failed = done = 0

    def fail(line: str) -> None:
        nonlocal failed
        failed += 1
        tqdm.write(f"error: {printable(one_line(line))}", file=sys.stderr)

    for line in audio.notes:
        tqdm.write(printable(line), file=sys.stderr)
    for line in audio.problems:
        fail(line)
    total = sum(audio.files.values())
    with tqdm(total=total, bar_format=BAR, file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        for path in audio.files:
            try:
                show = work(path, bar.update)
            except Exception as error:
                line = explain(error)
                if line is None:
                    raise
                fail(line)
            else:
                bar.clear()
                show()
                done += 1
    if failed and len(audio.files) > 1:
        count = f"{done} of {len(audio.files)} files were {done_to_them}"
        print(f"error: {count}; the others are named above", file=sys.stderr)
    return failed
