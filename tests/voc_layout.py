"""Small sets in PASCAL VOC's layout, made in a test."""

import numpy as np
from PIL import Image


def annotation(width, height, *objects):
    """XML of an image; an object is (name, (xmin, ymin, xmax, ymax), difficult)."""
    things = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>"
        + "".join(
            f"<{key}>{value}</{key}>"
            for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        + "</bndbox></object>"
        for name, box, difficult in objects
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>{size}{things}</annotation>"


class VocFolder:
    """A folder in VOC layout that images are added to."""

    def __init__(self, root):
        self.root = root
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / name).mkdir(parents=True)

    def add(self, image_id, pixels, *objects):
        """Write an image (H, W, 3) and its annotation."""
        Image.fromarray(pixels).save(self.root / "JPEGImages" / f"{image_id}.jpg", quality=95)
        text = annotation(pixels.shape[1], pixels.shape[0], *objects)
        (self.root / "Annotations" / f"{image_id}.xml").write_text(text)

    def add_mask(self, image_id, indexes):
        """Write a mask as VOC has it: the index of a palette for each pixel."""
        (self.root / "SegmentationClass").mkdir(exist_ok=True)
        mask = Image.fromarray(indexes.astype(np.uint8), mode="P")
        mask.putpalette(list(range(256)) * 3)
        mask.save(self.root / "SegmentationClass" / f"{image_id}.png")

    def list(self, name, ids, *, task="Main"):
        """Write an image set."""
        folder = self.root / "ImageSets" / task
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))

    def list_class(self, name, image_set, told):
        """Write a class file: -1, 0 or 1 by id."""
        lines = "".join(f"{image_id} {value:2}\n" for image_id, value in told.items())
        (self.root / "ImageSets" / "Main" / f"{name}_{image_set}.txt").write_text(lines)


def gray(height=40, width=60):
    """A plain image."""
    return np.full((height, width, 3), 120, np.uint8)
