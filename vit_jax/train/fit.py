"""The training loop: continues a run from its latest checkpoint to its last step."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections

from vit_jax import distributed, sharding, trees
from vit_jax.checkpoint import disk, remote
from vit_jax.checkpoint import saver as savers
from vit_jax.config import factory
from vit_jax.evals.evaluator import Arrays, Predict
from vit_jax.evals.evaluator import evaluate as run_evaluator
from vit_jax.inference import Predictor
from vit_jax.train.build import Run, build
from vit_jax.train.metrics import NonFiniteLossError, read_rows
from vit_jax.train.preemption import Preemption
from vit_jax.train.report import announce, finish, write_report
from vit_jax.train.state import State, title
from vit_jax.types import UserError


def fit(config: ml_collections.ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Train the model described by `config`, resuming from the latest checkpoint in `workdir` if there is one.

    Returns the last metrics. Raises UserError, before compiling, if config, data or workdir are wrong, and
    NonFiniteLossError if training diverges. On SIGTERM, saves and returns. Ctrl-C, and any other exception outside the
    step, saves the last state first.
    """
    config = factory.to_plain(config)
    distributed.check_equal(factory.flatten_config(config) | {"--workdir": str(workdir)})
    with Preemption() as preemption, remote.opened(workdir) as place:
        run = build(config, place.path)
        with disk.explained(place.path), memory_explained(run), run.opened(), preemption.ctrl_c.deferred():
            return train(run, preemption, place)


@contextlib.contextmanager
def memory_explained(run: Run) -> Iterator[None]:
    """Raise UserError where the memory of a device is exhausted."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"The step needs more memory than a device has, with batch_size={run.data.batch_size}. Take a smaller batch, "
            "model.remat='full', or the gradient of parts of the batch, grad={'type': 'accumulate.Accumulate', "
            "'microbatches': 2}; `vit plan` says what fits."
        ) from error


def diverged_words(error: Exception, saver: savers.Saver, place: remote.Workdir) -> str:
    """Return the message of a run that diverged: where it stopped, what is saved and what may help."""
    good = saver.latest()
    kept = f"the last good checkpoint is step {good}, in {place.shown(saver.directory)}"
    return (
        f"Stopped: {error}; {'no checkpoint was saved before' if good is None else kept}. A lower optim.lr, a longer warm-up "
        "or optim.clip_norm may help."
    )


def train(run: Run, preemption: Preemption, place: remote.Workdir) -> dict[str, Any]:
    """Run the loop: step, log, evaluate, save, stop."""
    saver, recorder, steps = run.saver, run.recorder, run.parts.steps
    place.push()  # fails now if the place cannot be written
    saver.open(place.checkpoints)
    state = restore_or_init(run)
    start = done = int(state.step)
    recorder.open(
        run.path, start, steps=steps, batch_size=run.data.batch_size, num_examples=run.data.spec.num_examples,
        seconds_at_peak=run.seconds_at_peak,
    )  # fmt: skip
    predict = preemption.checked(Predictor(run.parts.task, run.mesh))
    # XLA:CPU aborts in a rendezvous when several steps are in flight on several devices.
    block_each = jax.default_backend() == "cpu" and run.mesh.size > 1
    preemption.ctrl_c.safe = lambda: saved_words(max(savers.steps_in(saver.directory), default=None), run, place)
    announce(run, state, place)
    recorder.show("compiling" if start < steps else "")
    in_step = False
    try:
        measured, begin = evaluate_missed(run, state, predict), time.perf_counter()
        for step, batch in preemption.waiting_for(recorder.timed(run.data.from_step(start, steps))):
            batch = sharding.put_batch(batch, run.mesh)
            in_step = True
            state, metrics = run.train_step(state, batch)
            in_step, done = False, step + 1
            recorder.took(done, metrics, run.data.unreadable)
            if step == start:
                compiled = time.perf_counter()
                jax.block_until_ready(metrics)
                first = time.perf_counter() - compiled
                print(f"compiled in {compiled - begin:.1f} s, first step {first:.1f} s", flush=True)
                recorder.show("")
                recorder.restart_clock(done)
            elif block_each:
                jax.block_until_ready(metrics)
            last, due = done == steps, run.due_at(done)
            stop = preemption.due(done)  # asked once, so that the step saved is the step printed
            save = last or stop or done % saver.every == 0 or (saver.best is not None and bool(due))
            if due or save:
                recorder.flush_steps(run.data.unreadable)
                with recorder.paused():
                    results, measured = evaluate(run, state, predict, due)
                    recorder.evaluated(done, results)
                    if save:
                        saver.latest()  # so that a mirror has it before the next one replaces it
                        place.push()
                        saver.save(done, trees.flatten(state), results)
            if stop and not last:
                saver.latest()
                place.push()
                if preemption.ctrl_c.requested:
                    raise KeyboardInterrupt
                print(f"SIGTERM: saved step {done}; run the same command to resume", flush=True)
                return {}
        if start < steps or not (run.path / "report").exists():
            write_report(run, measured or evaluate(run, state, predict, list(run.evaluators))[1])
    except NonFiniteLossError as error:
        error.args = (diverged_words(error, saver, place),)
        raise
    except BaseException as error:
        preemption.ctrl_c.saving = True
        distributed.wait_for_the_end(error)
        if disk.code_of(error, run.path) is None:
            print(save_last(run, None if in_step else state, done, place), flush=True)
        preemption.ctrl_c.saving = False
        raise
    finally:
        close(run)
    return finish(run, state, place, measured)


def close(run: Run) -> None:
    """Wait until everything is written; if an error ends the run, suppress the errors that follow from it."""
    for end in (run.recorder.close, run.saver.close):
        with contextlib.suppress(*[Exception] * (sys.exc_info()[0] is not None)):
            end()


def save_last(run: Run, state: State | None, done: int, place: remote.Workdir) -> str:
    """Save the state of a run that an exception ends, if it is complete and finite; return where the run can resume."""
    saved = run.saver.latest()
    if state is not None and saved != done:
        try:  # reading the results of a step that failed on a device raises its error again
            if distributed.agree(run.recorder.is_finite()):
                with contextlib.suppress(Exception):  # a writer may be what failed
                    run.recorder.flush_steps(run.data.unreadable)
                run.saver.save(done, trees.flatten(state), {})
                saved = run.saver.latest()
                place.push()
        except Exception as error:  # the error that ended the run is the one shown
            print(f"could not save step {done}: {error}", flush=True)
    return saved_words(saved, run, place)


def saved_words(step: int | None, run: Run, place: remote.Workdir) -> str:
    """Return a message on where a run can resume from."""
    if step is None:
        return "nothing was saved"
    return f"step {step} is saved in {place.shown(run.saver.directory)}; run the same command to resume"


def evaluate(
    run: Run, state: State, predict: Predict, names: list[str]
) -> tuple[dict[str, float], dict[str, Mapping[str, Arrays]]]:
    """Return the results of evaluators on each kind of weights, as NAME/KEY, and their measurements, by NAME."""
    results: dict[str, float] = {}
    measured: dict[str, Mapping[str, Arrays]] = {}
    weights = state.evaluated(run.parts.task) if names else {}
    for name in names:
        for suffix, kind in weights.items():
            values, measured[title(name, suffix)] = run_evaluator(run.evaluators[name][0], predict, kind)
            results |= {f"{title(name, suffix)}/{key}": value for key, value in values.items()}
    best = run.saver.best or ""
    there = [key for key in results if key.startswith(best.partition("/")[0] + "/")]
    if best and there and best not in results:
        raise UserError(f"checkpoint.best is {best!r}, which is not measured; expected one of {', '.join(there)}.")
    return results, measured


def evaluate_missed(run: Run, state: State, predict: Predict) -> dict[str, Mapping[str, Arrays]]:
    """Record an evaluation that is due at the step of a resumed run and is not there yet.

    An exception ended the run in it, or its evaluator is new. `checkpoint.best` ignores it, as the step is saved already.
    """
    step = int(state.step)
    due = run.due_at(step) if step else []
    rows = read_rows(run.path / "metrics.jsonl") if distributed.is_first() else []
    keys = next((row.keys() for row in rows if row["step"] == step), ())
    if distributed.of_first(all(any(key.startswith(f"{name}/") for key in keys) for name in due)):
        return {}
    with run.recorder.paused():
        results, measured = evaluate(run, state, predict, due)
        run.recorder.evaluated(step, results)
    return measured


def restore_or_init(run: Run) -> State:
    """Return the state of the latest checkpoint, or the initial state."""
    step = run.saver.latest()
    if step is None:
        return jax.jit(run.parts.init, out_shardings=run.shardings)(run.initial_params)
    like = sharding.with_shardings(run.parts.shapes, run.shardings)
    return trees.unflatten(like, savers.restore(run.saver.directory, step, trees.flatten(like)))
