from tests.peers import timm
from vit_jax.pretrained import names


def test_names_of_the_original_resolve_to_the_hub_and_the_bucket():
    assert names.places("ViT-B_16")[0] == "hf:timm/vit_base_patch16_224.orig_in21k"
    assert names.places("ViT-B_16")[-1] == "gs://vit_models/imagenet21k/ViT-B_16.npz"
    assert names.places("Mixer-B_16.npz")[-1] == "gs://mixer_models/imagenet21k/Mixer-B_16.npz"
    run = "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"
    assert names.places("augreg/B_16") == names.places(f"augreg/{run}.npz") == names.places(run)
    assert names.places(run)[0] == "hf:timm/vit_base_patch16_224.augreg_in21k"
    assert names.places("augreg/B_16-i1k-30ep.npz") == ("gs://vit_models/augreg/B_16-i1k-30ep.npz",)
    assert names.places("B/16") is None
    assert names.places("nonsense") is None


def test_the_table_agrees_with_what_timm_was_made_of():
    known = {name: timm.get_pretrained_cfg(name) for name in timm.list_pretrained(["*vit*", "mixer*"])}
    bucket = "https://storage.googleapis.com/vit_models/"
    theirs = {
        c.url.replace(bucket, "gs://vit_models/"): f"hf:timm/{n}" for n, c in known.items() if bucket in (c.url or "")
    }
    ours = {row.places[-1]: row.places[0] for row in names.table()}
    assert len(theirs) == 37
    assert {place: ours.get(place) for place in theirs} == theirs
    hub = [p.removeprefix("hf:timm/") for row in names.table() for p in row.places if p.startswith("hf:timm/")]
    assert not set(hub) - set(known)
    resolutions = {f"hf:timm/{n}": c.input_size[-1] for n, c in known.items()}
    assert all(resolutions.get(row.places[0], row.resolution) == row.resolution for row in names.table())
