"""Times JPEG files -> random crops of 224 pixels against big_vision's fused tf.data pipeline, in turns on the same cores.

    python experiments/data_202611/compare.py --images=DIR --tf_python=PYTHON --big_vision=CHECKOUT [--rounds=5] [--workers]
        [--fast_crops] [--min_side=N]

DIR holds JPEG files; PYTHON is one with tensorflow, CHECKOUT a clone of github.com/google-research/big_vision. Both sides live
through the whole run; while one is timed the other waits for its turn. With --fast_crops or --min_side our files are rewritten
first, as `vit prepare` does with these flags.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH = 50
# Data sets are larger than a sample of one: so often each file is read under another name. Shuffling a few hundred examples
# costs grain ten times as much for each as shuffling thousands.
COPIES = 16


def ours(images, cores, workers, rewrite):
    """Endless batches of this repository, nothing kept in memory; with `workers` from processes instead of threads."""
    from vit_jax.data.pipeline import TrainData
    from vit_jax.data.prepare import Rewrite
    from vit_jax.data.sources.folder import Folder

    folder = tempfile.TemporaryDirectory()
    made = Rewrite(**rewrite)
    for number, path in enumerate(sorted(Path(images).glob("*.[jJ]*"))):
        place = Path(folder.name) / f"class{number % 2}"
        place.mkdir(exist_ok=True)
        if made.changes:
            (Path(folder.name) / path.name).write_bytes(made(path.read_bytes()))
            path = Path(folder.name) / path.name
        for copy in range(COPIES):
            (place / f"{copy}_{path.name}").symlink_to(path.resolve())
    with folder:
        data = TrainData(
            Folder(folder.name, "all"),
            "inception_crop(224)",
            BATCH,
            seed=0,
            threads=cores,
            prefetch=cores,
            cache_mb=0,
            workers=cores if workers else 0,
        )
        yield from (batch["image"] for _, batch in data.from_step(0, 2**31))


def theirs(images, cores):
    """Endless batches of decode_jpeg_and_inception_crop as big_vision's configs write it, on as many threads as cores."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf
    from big_vision.pp import ops_image

    crop = ops_image.get_decode_jpeg_and_inception_crop(224)
    data = tf.data.Dataset.from_tensor_slices(sorted(map(str, Path(images).glob("*.[jJ]*")))).repeat()
    data = data.map(lambda path: crop({"image": tf.io.read_file(path)})["image"], num_parallel_calls=cores)
    options = tf.data.Options()
    options.threading.private_threadpool_size = cores
    options.threading.max_intra_op_parallelism = 1
    yield from data.batch(BATCH).prefetch(cores).with_options(options)


def serve(batches, ahead):
    """Answers each line of standard input, a number of batches, with their rate; those made before the turn do not count."""
    for line in sys.stdin:
        for _ in range(ahead):
            next(batches)
        begin, cpu = time.perf_counter(), sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        images = sum(len(next(batches)) for _ in range(int(line)))
        wall, cpu = time.perf_counter() - begin, sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - cpu
        print(json.dumps([images / wall, images / cpu]), flush=True)


def start(side, flags, cores):
    """A process of one side, held to the first so many cores."""
    here = Path(__file__).resolve()
    python, path = (sys.executable, here.parents[2]) if side == "ours" else (flags.tf_python, flags.big_vision)
    command = [python, "-W", "ignore", str(here), f"--images={flags.images}", f"--side={side}", f"--cores={cores}"]
    return subprocess.Popen(
        command
        + ["--workers"] * flags.workers
        + ["--fast_crops"] * flags.fast_crops
        + [f"--min_side={flags.min_side}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(path)},
        preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores]),
    )


def turn(process, batches):
    """Images a second, and for a second of the process's processor time."""
    process.stdin.write(f"{batches}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def main():
    """Prints the medians over the rounds, each of which times all four in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--tf_python")
    parser.add_argument("--big_vision")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--workers", action="store_true", help="our batches from processes instead of threads")
    parser.add_argument(
        "--fast_crops", action="store_true", help="first rewrite our files like vit prepare --fast_crops"
    )
    parser.add_argument("--min_side", type=int, default=0, help="first rewrite our files like vit prepare --min_side")
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, default=2, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.side:
        side = (
            ours(
                flags.images,
                flags.cores,
                flags.workers,
                {"fast_crops": flags.fast_crops, "min_side": flags.min_side or None},
            )
            if flags.side == "ours"
            else theirs(flags.images, flags.cores)
        )
        serve(side, ahead=2 * flags.cores + 1)
        return
    cases = [(side, cores) for cores in (1, 2) for side in ("ours", "theirs")]
    processes = {case: start(case[0], flags, case[1]) for case in cases}
    epoch = -(-COPIES * sum(1 for _ in Path(flags.images).glob("*.[jJ]*")) // BATCH)
    for process in processes.values():  # in our first epoch every file is decoded whole once
        turn(process, epoch)
    rows = [{case: turn(processes[case], flags.batches) for case in cases} for _ in range(flags.rounds)]
    for process in processes.values():
        process.stdin.close()
        process.wait()

    def median(value):
        return statistics.median(map(value, rows))

    for case in cases:
        wall, cpu = (median(lambda row, i=i, case=case: row[case][i]) for i in (0, 1))
        print(f"{case[0]:6} {case[1]} cores: {wall:6.0f} images/s, {cpu:6.0f} a second of its own processor time")
    for cores in (1, 2):
        by = [median(lambda r, i=i, n=cores: r["ours", n][i] / r["theirs", n][i]) for i in (0, 1)]
        print(
            f"ours / big_vision on {cores} cores: {by[0]:.2f}"
            + ("" if flags.workers else f", by processor time {by[1]:.2f}")
        )
    for side in ("ours", "theirs"):
        print(f"{side} from 1 to 2 cores: x {median(lambda r, side=side: r[side, 2][0] / r[side, 1][0]):.2f}")


if __name__ == "__main__":
    main()
