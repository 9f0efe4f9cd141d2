"""Copy a finished run's network to results/models/RECIPE: python results/publish.py RUN [--data-dir D]

The weights are rounded to bf16, the norms' running statistics are not; the test scores in the record beside them are
measured with exactly these weights.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from index import HERE, card, committed, whole, without_places

import resfit
from resfit.files import write_atomic
from resfit.modelfile import save_model
from resfit.recipe import get_recipe
from resfit.record import read_record, record_text
from resfit.trained import evaluate

MOST_BYTES = 10_000_000


def publish(run: Path, data_dir: Path | None) -> Path:
    """Publish the run's network and return its folder."""
    record, net = read_record(run), resfit.load(run)
    target = HERE / "models" / record.recipe
    if target.exists():
        raise SystemExit(f"error: already published ({target}): remove it to replace it with this one")
    folder = target.with_name(f".{target.name}")  # hidden until complete
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for parameter in net.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    save_model(folder / "model.safetensors", net, net.spec, net.info)
    size = (folder / "model.safetensors").stat().st_size
    if size > MOST_BYTES:
        shutil.rmtree(folder)
        raise SystemExit(f"error: the weights take {size:,} bytes, more than {MOST_BYTES:,}: publish a smaller network")
    write_atomic(folder / "recipe.yaml", (run / "recipe.yaml").read_text())
    test = evaluate(folder, tta=record.protocol["tta_views"], data_dir=data_dir)
    was, now = f"{100 * record.test.accuracy:.2f} %", f"{100 * test.accuracy:.2f} %"
    event = f"weights rounded to bf16 and evaluated on the test set again: {now} without TTA, before {was}"
    description = get_recipe(record.recipe).description  # the current one
    env = {**record.env, "command": without_places(record.env["command"])}
    protocol = {**record.protocol, "test_scored": record.protocol["test_scored"] + 1}
    published = replace(
        record,
        description=description,
        config={**record.config, "description": description},
        test=test,
        events=(*record.events, event),
        protocol=protocol,
        val=None,  # this and the next three were measured before rounding
        robustness=None,
        human=None,
        exports=(),
        samples=(),
        augmented="",
        env=env,
    )
    write_atomic(folder / "record.json", record_text(published))
    write_atomic(folder / "README.md", card(folder, whole(committed())))
    return folder.rename(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    print(publish(options.run, options.data_dir))
