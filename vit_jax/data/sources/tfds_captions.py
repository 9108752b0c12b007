"""Read TensorFlow Datasets with captions, such as coco_captions, through array_record, without TensorFlow."""

from typing import Any

from vit_jax.data.source import Example, Fields, Image, Text, UnreadableImage
from vit_jax.data.sources.tfds import Tfds, image_features
from vit_jax.types import Count, UserError


class TfdsCaptions(Tfds):
    """One split of a prepared TFDS data set with captions; see Tfds. text_key: the feature with the captions."""

    def __init__(
        self,
        name: str,
        split: str = "train",
        data_dir: str | None = None,
        image_key: str = "image",
        text_key: str = "captions/text",
        channels: Count = 3,
    ):
        super().__init__(name, split, data_dir, image_key, text_key, channels)

    @classmethod
    def fields_of(cls, class_names: tuple[str, ...]) -> Fields:
        """See Source."""
        return {"image": Image(), "text": Text()}

    def describe(self, tfds: Any, builder: Any, name: str, image_key: str, label_key: str) -> None:
        """See Tfds; raises UserError if a feature is missing."""
        features = image_features(tfds, builder, name, image_key=image_key)
        kind: Any = features
        for part in label_key.split("/"):
            inner = getattr(kind, "feature", kind)
            kind = dict(inner.items()).get(part) if hasattr(inner, "items") else None
        if not isinstance(getattr(kind, "feature", kind), tfds.features.Text):
            raise UserError(
                f"Found no text feature {label_key!r} in {name!r}, expected one such as captions/text: set text_key; it has "
                f"{', '.join(features)}."
            )
        self.fields = self.fields_of(())

    def others(self, index: int, features: Any) -> Example:
        """See Tfds."""
        try:
            return {"text": tuple(text.decode() for text in features[self._label_key].bytes_list.value)}
        except UnicodeDecodeError as error:
            raise UnreadableImage(f"its caption cannot be read ({error})") from error
