"""`python -m tools.training FOLDER`: train an embedded model; run it again and it resumes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tools.training.train import MASKED, SAVE_EVERY, train
from workbench.errors import WorkbenchError


def save_losses(losses: Sequence[float], path: Path) -> None:
    """A training's loss as a figure."""
    from workbench.plots import COLOURS, finding, new_figure
    from workbench.plots.theme import PICTURE

    figure, (ax,) = new_figure()
    ax.plot([SAVE_EVERY * (n + 1) for n in range(len(losses))], losses, color=COLOURS[0])
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.set_xlabel("step")
    ax.set_ylabel("loss of what can be learned, nats")
    if losses:
        finding(ax, f"Loss: from {losses[0]:.2f} to {losses[-1]:.2f} nats")
    figure.savefig(path, **PICTURE)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.training", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the model goes")
    parser.add_argument("--diffusion", action="store_true", help="its masked-diffusion sibling")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args(arguments)
    folder: Path = given.folder
    try:
        losses = train(folder, MASKED if given.diffusion else None, given.device)
    except WorkbenchError as error:
        parser.error(str(error))
    save_losses(losses, folder / "loss.png")
    print(f"{folder}: the model; loss.png: its loss")
    if not given.diffusion:
        print(f"next: python -m benchmarks skills {folder}")


if __name__ == "__main__":
    main()
