"""Load Street View House Numbers, cropped digits (Netzer et al. 2011), from the official MATLAB files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from resfit.data.download import download, read_checked
from resfit.data.images import Images, Source
from resfit.data.locations import Locations
from resfit.errors import BadInput

FILES = {
    "train": ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
    "test": ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
}


def load_svhn(locations: Locations) -> Source:
    """Return the 73,257 training and 26,032 test images, 3 x 32 x 32; label 10 in the files is the digit 0."""
    files = {part: _find(part, locations) or _fetch(part, locations) for part in ("train", "test")}
    train, test = (_read(file, FILES[part][1]) for part, file in files.items())
    return Source(classes=tuple("0123456789"), train=train, test=test)


def _find(part: str, locations: Locations) -> Path | None:
    candidates = (place / FILES[part][0] for place in locations.all)
    return next((path for path in candidates if path.is_file()), None)


def _fetch(part: str, locations: Locations) -> Path:
    name, md5 = FILES[part]
    locations.require_network(f"SVHN's {name}")
    from torchvision.datasets import SVHN  # for the official URL

    path = locations.download_dir / name
    locations.tell(f"downloading {name} to {path.parent}")
    download(SVHN.split_list[part][0], path, md5)
    return path


def _read(path: Path, md5: str) -> Images:
    from scipy.io import loadmat

    content = read_checked(path, md5)
    try:
        arrays = loadmat(io.BytesIO(content), variable_names=("X", "y"))
        pixels, labels = arrays["X"], arrays["y"].astype(np.int64).flatten()
        good = pixels.dtype == np.uint8 and pixels.shape == (32, 32, 3, len(labels))
        good = good and bool(((labels >= 1) & (labels <= 10)).all())
    except Exception:  # a damaged file may raise any exception
        good = False
    if not good:
        raise BadInput(f"not a file of SVHN's cropped digits ({path}): delete it and download it again")
    images = np.ascontiguousarray(pixels.transpose(3, 2, 0, 1))
    return Images(images=torch.from_numpy(images), labels=torch.from_numpy(labels % 10))
