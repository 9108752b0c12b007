"""Load images and masks from TensorFlow Datasets."""

from typing import Any

from vit_jax.data.decode import decode_labels, size_of
from vit_jax.data.same_names import Look, check_maps
from vit_jax.data.source import Example, Fields, Image, Segments
from vit_jax.data.sources.segments import Code, Codes, Mask
from vit_jax.data.sources.tfds import Tfds, image_features
from vit_jax.types import Count, Steps


class TfdsSegments(Tfds):
    """One split of a prepared TFDS data set with masks, such as oxford_iiit_pet; see Tfds.

    mask_key: the image feature with the masks. classes: the names of the classes, which TFDS does not know. values,
    ignore and scan: see segments.SegmentFolder; masks are read as they were encoded, usually as PNG.
    """

    def __init__(
        self,
        name: str,
        classes: tuple[str, ...],
        split: str = "train",
        data_dir: str | None = None,
        image_key: str = "image",
        mask_key: str = "segmentation_mask",
        values: tuple[Code, ...] | None = None,
        ignore: tuple[Code, ...] | None = None,
        scan: Steps = 2000,
        channels: Count = 3,
    ):
        self._codes = Codes(classes, values, ignore)
        super().__init__(name, split, data_dir, image_key, mask_key, channels)
        check_maps(len(self), scan, self._look, self._codes.words)

    @classmethod
    def fields_of(cls, class_names: tuple[str, ...]) -> Fields:
        """See Source."""
        return {"image": Image(), "segments": Segments(class_names)}

    def describe(self, tfds: Any, builder: Any, name: str, image_key: str, label_key: str) -> None:
        """See Tfds; raises UserError if a feature is missing or no image."""
        image_features(tfds, builder, name, image_key=image_key, mask_key=label_key)
        self.fields = self.fields_of(self._codes.class_names)

    def others(self, index: int, features: Any) -> Example:
        """See Tfds."""
        data = self.encoded(features, self._label_key)
        return {"segments": Mask(lambda: data, self.name(index), self._codes)}

    def _look(self, index: int) -> Look:
        features = self.features(index)
        labels = decode_labels(self.encoded(features, self._label_key))
        size = size_of(self.encoded(features, self._image_key))
        return Look(self.name(index), labels.shape, size, self._codes.unknown(labels))
