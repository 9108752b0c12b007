"""The training loop: carries a run from its last checkpoint to its last step."""

import functools
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections

from vit_jax import distributed as processes
from vit_jax import inference, sharding, trees
from vit_jax.checkpoint import remote
from vit_jax.checkpoint import saver as savers
from vit_jax.config import factory as configs
from vit_jax.train.metrics import NonFiniteLossError, read_rows
from vit_jax.train.preemption import Preemption
from vit_jax.train.report import write_report
from vit_jax.train.run import Run, compose
from vit_jax.train.state import State
from vit_jax.types import UserError


def fit(config: ml_collections.ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Trains what the config says in `workdir`, from its last checkpoint where it has one; returns the last metrics.

    Raises UserError before any compile where config, data or workdir are at fault, and NonFiniteLossError where training
    diverges. On SIGTERM it saves and returns.
    """
    with Preemption() as preemption, remote.opened(workdir) as place:
        run = compose(configs.plain(config), place.path)
        return train(run, preemption, place)


def train(run: Run, preemption: Preemption, place: remote.Workdir) -> dict[str, Any]:
    """The loop."""
    saver, recorder = run.saver, run.recorder
    place.push()  # tells now whether it can be written
    saver.open(place.checkpoints)
    state = restore_or_init(run)
    start = int(state.step)
    recorder.open(run.path, start, steps=run.steps, batch_size=run.data.batch_size, step_at_best=run.step_at_best)
    predict = inference.make_predict(run.task, run.mesh)
    # XLA:CPU aborts in a rendezvous when several steps are under way on several devices.
    await_each = jax.default_backend() == "cpu" and run.mesh.size > 1
    announce(run, state, place)
    begin = time.perf_counter()
    try:
        for step, batch in recorder.timed(run.data.from_step(start, run.steps)):
            state, metrics = run.train_step(state, sharding.put_batch(batch, run.mesh))
            done = step + 1
            recorder.took(done, metrics, run.data.unreadable)
            if step == start:
                jax.block_until_ready(metrics)
                print(f"compiled the step and took it in {time.perf_counter() - begin:.1f} s", flush=True)
                recorder.restart_clock(done)
            elif await_each:
                jax.block_until_ready(metrics)
            last = done == run.steps
            due = [name for name, (_, every) in run.evaluators.items() if last or (every and done % every == 0)]
            stop = preemption.due(done)  # asked once, so that what is said to be saved is
            save = last or stop or done % saver.every == 0 or (saver.best is not None and bool(due))
            if due or save:
                recorder.settle(run.data.unreadable)
                with recorder.paused():
                    try:
                        results = evaluate(run, state, predict, due)
                    except UserError:
                        saver.save(done, trees.flatten(state), {})
                        raise
                    recorder.evaluated(done, results)
                    if save:
                        saver.latest()  # so that a mirror has it before another takes its place
                        place.push()
                        saver.save(done, trees.flatten(state), results)
            if stop and not last:
                saver.close()
                place.push()
                print(f"SIGTERM: saved step {done}; run the same command to go on", flush=True)
                return {}
    except NonFiniteLossError as error:
        good = saver.latest()
        where = (
            f"the last good checkpoint is of step {good}, in {place.shown(saver.directory)}"
            if good
            else "no checkpoint was saved before"
        )
        error.args = (f"Stopped: {error}; {where}. A lower optim.lr, a longer warm-up or optim.clip_norm may help.",)
        raise
    finally:
        saver.close()
        recorder.close()
    return finish(run, predict, state, place)


def evaluate(run: Run, state: State, predict: inference.Predict, names: list[str]) -> dict[str, float]:
    """What these evaluators measure of the running average of the weights and, or else, of the weights, as NAME/KEY."""
    results: dict[str, float] = {}
    for name in names:
        evaluator, _ = run.evaluators[name]
        for title, weights in state.evaluated(name).items():
            values = evaluator(functools.partial(predict, weights))
            results |= {f"{title}/{key}": value for key, value in values.items()}
    return results


def restore_or_init(run: Run) -> State:
    """The state of the last checkpoint, or the first state."""
    step = run.saver.latest()
    if step is None:
        return jax.jit(run.init, out_shardings=run.places)(run.begin_with)
    like = sharding.placed(jax.eval_shape(run.init, None), run.places)
    return trees.unflatten(like, savers.restore(run.saver.directory, step, trees.flatten(like)))


def announce(run: Run, state: State, place: remote.Workdir) -> None:
    """Says what is about to run."""
    spec, done = run.data.spec, int(state.step)
    trained, frozen = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state.params, state.frozen))
    part = f", {trained:,} of them trained" if frozen else ""
    print(
        f"{trained + frozen:,} parameters{part}; {spec.num_examples:,} training images "
        f"{'x'.join(map(str, spec.image_shape))} of {len(spec.class_names)} classes; {run.steps:,} steps of "
        f"{run.data.batch_size} images on {run.mesh.size} {jax.devices()[0].device_kind} device(s), {run.parallel}; "
        f"{place.shown(run.path)}"
    )
    if done:
        print(f"resuming at step {done}" if done < run.steps else f"already finished at step {done}", flush=True)


def finish(run: Run, predict: inference.Predict, state: State, place: remote.Workdir) -> dict[str, Any]:
    """Writes the report of a finished run and returns its last metrics."""
    classifying = (e for e, _ in run.evaluators.values() if not e.own_classes and not e.spec.label_shape)
    evaluator = next(classifying, None)
    write_report(run.path, evaluator, functools.partial(predict, state.weights), run.data.spec.class_names)
    processes.wait("everything is written")
    rows = read_rows(run.path / "metrics.jsonl")
    values: dict[str, Any] = next((row for row in reversed(rows) if row["step"] == run.steps), {})
    for name in (title for entry in run.evaluators for title in state.evaluated(entry)):
        if f"{name}/accuracy" in values:
            loss = f", loss {values[f'{name}/loss']:.4f}" if f"{name}/loss" in values else ""
            print(f"{name} accuracy {100 * values[f'{name}/accuracy']:.2f} %{loss}")
    print(f"report: {place.shown(run.path / 'report')}", flush=True)
    return values
