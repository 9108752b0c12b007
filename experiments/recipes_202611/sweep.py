"""What the ingredients give on CIFAR-10: the three tables of the README, one sweep each."""

from vit_jax.runs.sweeps.space import Sweep, chain, product, run_names, seeds

# The network of 0.15 M parameters, and its optimiser.
NETWORK = {
    "type": "vit.ViT",
    "width": 64,
    "depth": 4,
    "mlp_dim": 128,
    "num_heads": 4,
    "patch_size": 8,
    "stride": 4,
    "pool": "gap",
    "posemb": "sincos2d",
}
SMALL = {
    "model": NETWORK,
    "optim.rule": {"type": "adam", "b2": 0.99},
    "optim.lr": 2e-3,
    "optim.schedule.warmup_steps": 60,
}
STRONG = SMALL | {"model": NETWORK | {"drop_path": 0.1}}


def recipe(data: str) -> list[dict]:
    """The small-data recipe against the plain config of the same network."""
    plain = {"config": f"configs/cifar10.py:{data}", "ema_decay": 0.998}
    return product([plain, {"config": f"configs/small_data.py:data={data}"}], seeds(3))


def strong(data: str) -> list[dict]:
    """Plain and strong augmentation, of all images and of a hundred of each class, which prepare.py puts into PATH_few."""
    lengths = [(data, 1200), (f"{data}_few", 1200), (f"{data}_few", 4800)]
    plain = [
        SMALL | {"config": f"configs/small_data.py:data={images}", "task.label_smoothing": 0.0, "steps": steps}
        for images, steps in lengths
    ]
    others = [
        STRONG | {"config": f"configs/small_data.py:data={images},aug=strong", "steps": steps}
        for images, steps in lengths
    ]
    return plain + others


def teacher(data: str) -> list[dict]:
    """Alone, taught by the plain network of `recipe`, seed 0, and with SAM."""
    place = f"workdirs/recipes_202611/recipe/{run_names(recipe(data))[0]}"
    ways = [
        {},
        {"teacher": place, "task": {"type": "distill.Distill", "weight": 0.7, "temperature": 2.0}},
        {"grad": {"type": "sam.Sam", "rho": 0.05}},
    ]
    return product([SMALL | {"steps": 1200}], chain(ways), seeds(3))


TABLES = {"recipe": recipe, "strong": strong, "teacher": teacher}


def get_sweep(arg: str = "") -> Sweep:
    """`arg` is the table, recipe, strong or teacher, and the images: TABLE,folder:PATH."""
    table, _, data = arg.partition(",")
    if table not in TABLES or not data.startswith("folder:"):
        raise ValueError(f"found {arg!r}, expected TABLE,folder:PATH, where TABLE is {', '.join(TABLES)}")
    return Sweep(config=f"configs/cifar10.py:{data}", runs=TABLES[table](data), metric="test/accuracy")
