"""The demo: a local web page that classifies a dropped image and shows a Grad-CAM heat map.

The page uses gradio without telemetry, share links or web fonts: nothing leaves the machine.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from resfit.data.decode import decode_one
from resfit.data.normalize import normalizer
from resfit.demo.drawings import drawings
from resfit.demo.gradcam import grad_cam, overlay
from resfit.errors import BadInput
from resfit.net import Network
from resfit.predict import predict
from resfit.trained import Trained

if TYPE_CHECKING:
    from PIL.Image import Image

_SAMPLES = 8
_SIDE = 288  # approximate size of a displayed picture, in pixels
_NO_DATA = "No test images were found. Set their folder with `--data-dir`."
_FONTS = ("system-ui", "sans-serif")
_MONO_FONTS = ("ui-monospace", "monospace")
_LARGEST_FILE = "50mb"
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The result for one image: probabilities by class, the image as the network sees it, and its Grad-CAM overlay."""

    probabilities: dict[str, float]
    seen: Image
    looked: Image


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Sample images, uint8 [C, H, W], each with its class; `kind` names them, and `note` is shown below them."""

    images: list[tuple[Tensor, str]]
    kind: str
    note: str = ""


def answer(net: Network, pixels: Tensor) -> Answer:
    """Return everything that the page shows for an image, uint8 [C, H, W], of the network's input size."""
    picture, normalize = _picture(pixels), normalizer(net.info.mean, net.info.std, _CPU)
    likeliest = predict(net, picture, device="cpu").images[0].classes
    cam = grad_cam(net, normalize(pixels[None]), net.info.classes.index(likeliest[0].name))
    return Answer(
        probabilities={found.name: found.probability for found in likeliest},
        seen=_enlarged(picture),
        looked=_enlarged(overlay(pixels, cam)),
    )


def read_image(net: Network, file: str | Path) -> Tensor:
    """Decode an image file to the network's input size, uint8 [C, H, W]; raise BadInput if it cannot be read."""
    found = decode_one(Path(file), size=net.spec.input.size, channels=net.spec.input.channels)
    if isinstance(found, str):
        raise BadInput(f"cannot be read as an image ({Path(file).name}, {found}): give a PNG, JPEG, WebP, BMP or GIF")
    return torch.from_numpy(found.copy())


def sample_images(
    trained: Trained, data_dir: Path | None = None, tell: Callable[[str], None] = lambda line: None
) -> Samples:
    """Return up to eight images of the network's classes, one per class, without downloading anything.

    These are test images of the data set it was trained on, which must be in `data_dir` if that is given. If it is not
    found, digits are used if they suit the network, and otherwise drawings of those of its classes for which there are
    any.
    """
    for data in (None, "digits"):
        try:
            found = trained.data(data, data_dir=data_dir, offline=True, progress=tell, test_only=True)
        except BadInput:
            if data_dir is not None and trained.recipe is not None:
                raise
            continue
        present = found.test.labels.unique()[:_SAMPLES].tolist()
        firsts = [int((found.test.labels == label).nonzero()[0]) for label in present]
        images = [(found.test.images[i], found.classes[int(found.test.labels[i])]) for i in firsts]
        return Samples(images=images, kind=f"test images of {found.name}" if data else "test images")
    net = trained.net
    drawn = drawings(net.info.classes, size=net.spec.input.size, channels=net.spec.input.channels)
    return Samples(images=drawn, kind="drawings", note=_NO_DATA)


def serve(
    target: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    data_dir: Path | None = None,
    ready: Callable[[str], None] = print,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Serve the page for the network in a run folder or model file until interrupted; call `ready` with its address.

    `tell` gets a line where the sample images take long to load.

    Raises BadInput if the model or the port cannot be used, or gradio is not installed.
    """
    _require_address(host, port)
    trained = Trained(target)
    net = trained.net
    if net.spec.input.channels not in (1, 3):
        raise BadInput(f"the network takes {net.spec.input.channels} channels ({target}): pictures have 1 or 3")
    with tempfile.TemporaryDirectory() as uploads:
        gradio = _gradio(uploads)
        page = make_page(gradio, net, sample_images(trained, data_dir, tell))
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                share=False,
                quiet=True,
                ssr_mode=False,
                max_file_size=_LARGEST_FILE,
                footer_links=[],
                theme=gradio.themes.Default(font=_FONTS, font_mono=_MONO_FONTS),
            )
        except OSError:  # the port was taken after `_require_address`
            raise BadInput(f"no free port ({host}:{port or 'any'}): give another with --port") from None
        ready(address)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            page.close(verbose=False)


def _require_address(host: str, port: int | None) -> None:
    """Raise BadInput if the address cannot be bound: gradio's server would retry for minutes."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        where = f"{host}:{port or 'any'}, {str(getattr(error, 'strerror', None) or error).lower()}"
        raise BadInput(f"cannot serve at this address ({where}): give another --host or --port") from None


def _gradio(uploads: str) -> Any:
    """Import gradio with telemetry and network access turned off; dropped files are stored in the folder `uploads`."""
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": uploads,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    try:
        import gradio
    except ImportError:
        raise BadInput("the page needs gradio (resfit demo): pip install 'resfit[demo]'") from None
    return gradio


def make_page(gradio: Any, net: Network, samples: Samples) -> Any:
    """Build the page as gradio Blocks."""

    def show(pixels: Tensor) -> tuple[Any, ...]:
        found = answer(net, pixels)
        return "", found.probabilities, found.seen, found.looked

    def on_file(file: str | None) -> tuple[Any, ...]:
        if file is None:
            return "", None, None, None
        try:
            return show(read_image(net, file))
        except BadInput as error:
            return f"**{str(error)[0].upper()}{str(error)[1:]}.**", None, None, None

    def on_sample(chosen: Any) -> tuple[Any, ...]:
        return show(samples.images[chosen.index][0])

    on_sample.__annotations__["chosen"] = gradio.SelectData  # gradio reads the annotation to pass the event

    size = net.spec.input.size
    with gradio.Blocks(title="resfit", analytics_enabled=False) as page:
        facts = f"{len(net.info.classes)} classes, {_parameters(net):,} parameters, images of {size} x {size} pixels"
        gradio.Markdown(f"# resfit demo\n{facts}")
        with gradio.Row():
            with gradio.Column():
                file = gradio.File(label="Drop an image, or click to choose one", elem_id="file", height=160)
                message = gradio.Markdown(elem_id="message")
                if samples.images:
                    gradio.Markdown(f"Or choose one of these {samples.kind}")
                    gallery = gradio.Gallery(
                        [(_enlarged(_picture(pixels), 96), name) for pixels, name in samples.images],
                        label=samples.kind,
                        show_label=False,
                        elem_id="samples",
                        columns=4,
                        height="auto",
                        allow_preview=False,
                        buttons=[],
                        interactive=False,
                        format="png",
                    )
                if samples.note:
                    gradio.Markdown(samples.note)
            with gradio.Column():
                label = gradio.Label(label="Probabilities", num_top_classes=10, elem_id="answer")
                with gradio.Row():
                    seen = _image(gradio, "Network input", "seen")
                    looked = _image(gradio, "Grad-CAM heat map", "looked")
        shown = [message, label, seen, looked]
        file.change(on_file, file, shown, show_progress="hidden")
        if samples.images:
            gallery.select(on_sample, None, shown, show_progress="hidden")
    return page


def _image(gradio: Any, label: str, name: str) -> Any:
    with gradio.Column(min_width=160):
        gradio.Markdown(label)
        return gradio.Image(label=label, show_label=False, elem_id=name, interactive=False, format="png", buttons=[])


def _parameters(net: Network) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _picture(pixels: Tensor) -> Image:
    from PIL import Image

    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy())


def _enlarged(picture: Image, side: int = _SIDE) -> Image:
    """Enlarge by a whole factor without smoothing, so that each pixel is visible."""
    from PIL import Image

    factor = max(1, side // picture.width)
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)
