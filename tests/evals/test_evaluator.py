"""What every evaluator relies on: each example once, exact sums, several passes, and checks before any compile."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.evals.fake import evaluate, measured
from vit_jax.data.pipeline import EvalData
from vit_jax.data.source import UnreadableImage
from vit_jax.data.sources.fake import Fake
from vit_jax.evals.evaluator import Evaluator, Measured, check_needs, shard
from vit_jax.types import UserError


class Confusion(Evaluator):
    """Counts pairs of label and answer, and adds up numbers of each example."""

    def measure(self, batch, outputs):
        """See Evaluator."""
        label, predicted = (
            jnp.arange(3)[None] == x[:, None] for x in (batch["label"], outputs["logits"].argmax(axis=1))
        )
        counts = (label[:, :, None] & predicted[:, None, :]).astype(jnp.int32)
        big = jnp.full(counts.shape[0], 2**30, jnp.int32)
        return Measured({"first": outputs["logits"][:, 0]}, {"counts": counts, "big": big, "float": outputs["logits"]})

    def result(self, measured):
        """See Evaluator."""
        rows = measured[""]
        return {"trace": float(np.trace(rows["counts"])), "big": float(rows["big"])}


def logits_of(batch):
    """Answers of the grey level; NaN where an image is black, as masked ones are."""
    grey = batch["image"].astype(np.float64).mean(axis=(1, 2, 3))
    logits = np.eye(3)[grey.astype(int) % 3]
    logits[grey == 0] = np.nan
    return {"logits": logits}


class Damaged(Fake):
    """Some images cannot be read."""

    def __getitem__(self, index):
        if index in (2, 9):
            raise UnreadableImage("damaged")
        return super().__getitem__(index)


@pytest.mark.parametrize("batch_size", [1, 4, 11])
def test_sums_are_exact_whatever_is_masked(batch_size):
    source, whole = (kind(num_examples=11, image_size=4, num_classes=3) for kind in (Damaged, Fake))
    evaluator = Confusion(whole, "", batch_size)
    evaluator.passes = {"": EvalData(source, "", batch_size, max_unreadable=0.2)}
    result, rows = measured(evaluator, logits_of)
    expected, firsts = np.zeros((3, 3), np.int64), []
    for index in (i for i in range(11) if i not in (2, 9)):
        example = whole[index]
        answer = logits_of({"image": example["image"][None]})["logits"][0]
        expected[example["label"], answer.argmax()] += 1
        firsts.append(answer[0])
    np.testing.assert_array_equal(rows[""]["counts"], expected)
    np.testing.assert_array_equal(rows[""]["first"], firsts)
    np.testing.assert_array_equal(rows[""]["index"], [0, 1, 3, 4, 5, 6, 7, 8, 10])
    assert rows[""]["float"].sum() == 9
    assert (rows[""]["counts"].dtype, rows[""]["float"].dtype) == (np.int64, np.float64)
    assert result["trace"] == np.trace(expected)
    if batch_size == 1:  # 32 bits hold no more than one of them
        assert rows[""]["big"] == 9 * 2**30


def test_rows_are_in_the_order_of_the_index_whatever_order_they_come_in():
    evaluator = Confusion(Fake(num_examples=7, image_size=4, num_classes=3), "", 4)
    expected = measured(evaluator, logits_of)[1][""]
    shard(evaluator, lambda size: range(size - 1, -1, -1))
    found = measured(evaluator, logits_of)[1][""]
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key], err_msg=key)


class Pair(Evaluator):
    """Two passes over two data sets."""

    def __init__(self, first, second):
        super().__init__(first, "", 4)
        self.passes = {"first": self.data, "second": EvalData(second, "", 3)}

    def measure(self, batch, outputs):
        """See Evaluator."""
        return Measured({"label": batch["label"]})

    def result(self, measured):
        """See Evaluator."""
        return {f"{name}_{len(rows['label'])}": float(rows["label"].sum()) for name, rows in measured.items()}


def test_each_pass_has_its_own_data():
    first, second = (Fake(num_examples=n, image_size=4, num_classes=3) for n in (7, 10))
    expected = {
        f"{name}_{len(source)}": sum(source[i]["label"] for i in range(len(source)))
        for name, source in (("first", first), ("second", second))
    }
    assert evaluate(Pair(first, second), logits_of) == expected


@pytest.mark.parametrize("own", [True, False])
def test_labels_are_hidden_from_predict_where_the_classes_are_its_own(own):
    class Own(Pair):
        own_classes = own

    seen = []
    source = Fake(num_examples=4, image_size=4, num_classes=3)
    evaluate(Own(source, source), lambda batch: seen.append(set(batch)) or logits_of(batch))
    assert seen == [{"image"} if own else {"image", "label"}] * 3


def shapes(**keys):
    """A predict function that gives arrays of these shapes, and what it was shown."""
    shown = []

    def predict(weights, batch):
        shown.append(set(batch))
        return {key: jnp.zeros((len(batch["image"]), *shape)) for key, shape in keys.items()}

    return predict, shown


def test_what_a_task_does_not_give_is_told_with_what_it_gives():
    evaluator = Confusion(Fake(num_examples=4, image_size=4, num_classes=3), "", 4)
    predict, shown = shapes(probs=(3,), features=(8,))
    with pytest.raises(UserError, match=r"^evals.test needs logits, .*gives features, probs: use another evaluator"):
        check_needs("evals.test", evaluator, predict, None)
    assert shown == [{"image", "label"}]
    check_needs("evals.test", evaluator, shapes(logits=(3,))[0], None)


@pytest.mark.parametrize(
    ("measure", "says"),
    [
        (lambda b, o: Measured({"mean": o["logits"].mean()}), r"'mean' of shape \(\) among the rows"),
        (lambda b, o: Measured({}, {"sum": o["logits"].sum(axis=0)}), r"'sum' of shape \(3,\) among the sums"),
    ],
)
def test_measures_without_an_entry_for_each_example_are_refused(measure, says):
    class Wrong(Confusion):
        def measure(self, batch, outputs):
            return measure(batch, outputs)

    evaluator = Wrong(Fake(num_examples=4, image_size=4, num_classes=3), "", 4)
    with pytest.raises(UserError, match=f"evals.test: .*{says} of 2 examples; .*one entry for each"):
        check_needs("evals.test", evaluator, shapes(logits=(3,))[0], None)
