"""Compare our batched greedy decoding with transformers' own pipeline: same model, same audio, same transcripts.

The weights are random. The audio is noise with changing tones, so that a random model outputs text. Both sides get the
utterances sorted by length, longest first, as our decoder sorts them, so that the batches are the same. In a batch the
pipeline also decodes the frames of the padding. A trained model outputs nothing there, but a random one does. Its text
after the end of an utterance does not count as a difference.
"""

import re
import statistics
import tempfile

import numpy as np
import torch
from measure import parser, print_table, rounds, start
from models import TOKENS, make_model
from transformers import pipeline

from espnet_pinch.asr.decode import transcribe
from espnet_pinch.asr.upstream import save_ctc_model
from espnet_pinch.inference.timing import in_turns, ratio


def utterances(count: int, seconds: float) -> list[np.ndarray]:
    """``count`` utterances of ``seconds / 5`` to ``seconds``, the longest first."""
    generator = np.random.default_rng(0)
    made = []
    for length in sorted(generator.uniform(0.2, 1, count), reverse=True):
        n = int(length * seconds * 16000)
        tones = np.sin(np.cumsum(np.repeat(generator.uniform(0.02, 1.5, n // 800 + 1), 800)[:n]))
        made.append((0.3 * tones + generator.normal(0, 0.1, n)).astype(np.float32))
    return made


def main(arguments: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--utterances", type=int, default=16, help="number of utterances [16]")
    made.add_argument(
        "--seconds", type=float, default=15, help="longest possible utterance; the shortest is a fifth of it [15]"
    )
    made.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8])
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = start(made, arguments)
    model = make_model(args.size)
    model.frontend.processing = type(model.frontend.processing)(return_attention_mask=True)
    audio = utterances(args.utterances, args.seconds)
    tensors = [torch.from_numpy(samples) for samples in audio]
    with tempfile.TemporaryDirectory() as folder:
        save_ctc_model(folder, model.frontend.upstream, model.ctc.ctc_lo, TOKENS, model.frontend.processing)
        recognise = pipeline("automatic-speech-recognition", model=folder, device=args.device)
    model.to(args.device)
    texts = {}

    def theirs(size: int) -> None:
        texts["pipeline", size] = [row["text"] for row in recognise([a.copy() for a in audio], batch_size=size)]

    def ours(size: int) -> None:
        groups = (tensors[i : i + size] for i in range(0, len(tensors), size))
        texts["ours", size] = [text for group in groups for text in transcribe(model, group, args.device)]

    rows = []
    for size in args.batch_sizes:
        seconds = in_turns(
            {"pipeline": lambda s=size: theirs(s), "ours": lambda s=size: ours(s)}, args.repeats, args.clock
        )
        plain = [" ".join(re.sub("<[^<> ]+>", "", text).split()) for text in texts["pipeline", size]]
        pairs = zip(plain, texts["ours", size], strict=True)
        same = sum(a == b if size == 1 else a.startswith(b) for a, b in pairs)
        characters = sum(map(len, texts["ours", size]))
        for name, taken in seconds.items():
            times = [f"{min(taken):.3f}", f"{statistics.median(taken):.3f}"]
            faster = f"{1 / ratio(taken, seconds['pipeline']):.2f}"
            rows.append([f"{size}", name, *times, faster, f"{same} of {len(audio)}, {characters} characters"])
    total = sum(map(len, audio)) / 16000
    print(f"wav2vec2-{args.size}, {len(audio)} utterances, {total:.0f} s of audio, {rounds(args)}:\n")
    print_table(["batch", "decoder", "min s", "median s", "times as fast as pipeline", "same transcripts"], rows)


if __name__ == "__main__":
    main()
