"""Decode data directories with a folded model and ESPnet's own beam search (``asr_inference``)."""

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

from espnet_pinch.asr.decode import write_transcripts
from espnet_pinch.asr.safe_load import tensors_only
from espnet_pinch.bin import jobs, run_main
from espnet_pinch.data import subwords
from espnet_pinch.data.audio import no_code
from espnet_pinch.data.kaldi_dir import read_data_dir, read_table
from espnet_pinch.data.tokens import text_of
from espnet_pinch.gpus import check_gpus
from espnet_pinch.progress import progress_bar

# Imported once, in a process that all jobs are forked from.
PRELOAD = ["espnet_pinch.asr.task", "espnet2.bin.asr_inference"]


def asr_inference(command: list[str], done) -> None:
    """Run one job of ESPnet's asr_inference in this process. ``done``, a shared integer, counts its utterances."""
    from espnet2.bin.asr_inference import Speech2Text, main

    import espnet_pinch.asr.task  # noqa: F401  (registers frontend and model with ESPnet)

    decode_one = Speech2Text.__call__

    def counted(self, *args, **kwargs):
        hypotheses = decode_one(self, *args, **kwargs)
        with done.get_lock():
            done.value += 1
        return hypotheses

    Speech2Text.__call__ = counted  # ESPnet reports no progress of its own
    # Sound is read in this process: one more, started anew, would import ESPnet again, and know nothing of no_code.
    with tensors_only(), no_code():
        run_main(lambda: main([*command, "--num_workers", "0"]))


def decode(model: Path, data: Path, out: Path, jobs: int, ngpu: int, options: list[str]) -> None:
    """Decode a data directory with beam search in ``jobs`` processes, and write ``out/text``.

    Args:
        model: folder with config.yaml and model.pth.
        data: data directory.
        out: folder to write to.
        jobs: number of processes.
        ngpu: number of GPUs that each may use.
        options: further options of asr_inference.

    Raises:
        OSError: a job has failed; its own message is on stderr.
    """
    utterances = read_data_dir(data)
    kind = "kaldi_ark" if ".ark:" in utterances[0].audio else "sound"
    jobs = min(jobs, len(utterances))
    start = time.perf_counter()
    # ESPnet asks for GPUs while it is imported. A process forked after that can use none.
    context = multiprocessing.get_context("spawn" if ngpu else "forkserver")
    context.set_forkserver_preload(PRELOAD)
    done = context.Value("i", 0)
    with tempfile.TemporaryDirectory() as tmp:
        processes = []
        for job in range(jobs):
            keys = Path(tmp) / f"keys.{job}"
            keys.write_text("".join(f"{u.id}\n" for u in utterances[job::jobs]), encoding="utf-8")
            command = ["--asr_train_config", str(model / "config.yaml"), "--asr_model_file", str(model / "model.pth")]
            command += ["--data_path_and_name_and_type", f"{data / 'wav.scp'},speech,{kind}"]
            if (model / subwords.FILE).exists():
                command += ["--bpemodel", str(model / subwords.FILE)]
            command += ["--key_file", str(keys), "--output_dir", f"{tmp}/output.{job}", *options]
            process = context.Process(target=asr_inference, args=(command, done))
            process.start()
            processes.append(process)
        with progress_bar(desc=f"beam search over {data.name}", total=len(utterances), unit="utts") as bar:
            while any(process.is_alive() for process in processes):
                time.sleep(0.5)
                bar.update(done.value - bar.n)
            bar.update(done.value - bar.n)
        for job, process in enumerate(processes, 1):
            process.join()
            if process.exitcode:
                raise OSError(f"job {job} of {jobs} of the beam search over {data} failed")
        texts = {}
        for job in range(jobs):
            tokens = read_table(Path(tmp) / f"output.{job}" / "1best_recog" / "token")
            texts.update((id_, text_of(row.split(" "))) for id_, row in tokens.items())
    figures = write_transcripts(out, texts, utterances, time.perf_counter() - start)
    print(f"{data.name}: {figures['audio_seconds']:.0f} s of audio in {figures['seconds']:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.asr_beam_search", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder with config.yaml and model.pth")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="data directories")
    parser.add_argument("--out", type=Path, required=True, help="writes OUT/NAME/text for each data directory NAME")
    parser.add_argument("--inference_config", required=True, help="YAML with options of asr_inference")
    parser.add_argument("--nj", type=jobs, default=1, help="processes")
    parser.add_argument("--ngpu", type=int, default=0)
    args, more = parser.parse_known_args()  # ESPnet's parser checks the rest
    check_gpus(args.ngpu, f"--ngpu {args.ngpu}")
    options = ["--config", args.inference_config, "--ngpu", str(args.ngpu), *more]
    for data in args.data:
        decode(args.model, data, args.out / data.name, args.nj, args.ngpu, options)


if __name__ == "__main__":
    run_main(main)
