"""Jobs of a Slurm cluster: what they request, their scripts, their submission and their states.

A job runs any command on one node; an array runs it several times. While a server's job answers, a
readiness file in the job's folder has its address. A script never contains the key, which comes
from the job's environment or from a file of the user.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from workbench import values
from workbench.errors import EngineError, EngineUnavailableError, InputError

TEMPLATE = Path(__file__).with_name("slurm.sh")
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
TIMES = r"\d+|\d+:[0-5]\d:[0-5]\d|\d+-([01]?\d|2[0-3]):[0-5]\d:[0-5]\d"
FOLDER = r"[A-Za-z0-9_./@+=-]+"  # sbatch interprets % and blanks in it
SUBMITTED = r"(?:Submitted batch job )?(\d+)(?:(?:;| on cluster )(\S+))?"  # a wrapper may say it so
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip

FLAGS = {"diffusion": ("batch_size", "max_wait_time"), "vllm": ("preset", "timeout")}
RESERVED = {
    "api_key": "set WORKBENCH_API_KEY in the job's environment, or use a key file",
    "host": "it depends on whether there is a key",
    "model": "pass the model itself",
    "model_path": "pass the model itself",
    "port": "use port=…",
}


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """The resources to request: one node for a job, or for each task of an array.

    Attributes:
        account: the account to charge.
        gpus: GPUs of the node; 0 requests none.
        mem: memory of the node, such as 64G.
        time: the time limit: D-HH:MM:SS, HH:MM:SS, or minutes.
        partition: a partition, or several with commas; None is the cluster's default.
        cpus: cores; None is the cluster's default.
        container: an image for srun's container plugin (pyxis), or the path of a .sif file for
            apptainer.
        environment: a conda environment's name, or a virtual environment's folder (with a slash).
        name: the job's name, which is also in the names of its files.

    Raises:
        InputError: an invalid value, or one that Slurm or the shell would misinterpret.
    """

    account: str
    gpus: int = 1
    mem: str = "64G"
    time: str = "04:00:00"
    partition: str | None = None
    cpus: int | None = None
    container: str | None = None
    environment: str | None = None
    name: str = "workbench"

    def __post_init__(self) -> None:
        _match("account", self.account, NAME, "a name")
        _match("name", self.name, NAME, "a name")
        _match("mem", self.mem, r"[1-9]\d*[KMGT]", "a size such as 64G")
        _match("time", self.time, TIMES, "D-HH:MM:SS, HH:MM:SS, or a number of minutes")
        if not re.search("[1-9]", self.time):
            values.refuse("time", self.time, "a limit above 0")
        values.whole("gpus", self.gpus, 0)
        values.optional("cpus", self.cpus, values.whole, 1)
        if self.partition is not None:
            _match("partition", self.partition, f"{NAME}(,{NAME})*", "a name")
        values.optional("container", self.container, _one_line)
        values.optional("environment", self.environment, _one_line)
        if self.container is not None and self.environment is not None:
            raise InputError(
                f"container={self.container!r} and environment={self.environment!r}: set one of "
                "them, as a container has its own environment"
            )

    @classmethod
    def read(cls, settings: Mapping[str, str]) -> SlurmJob:
        """A job from the texts of its attributes.

        Raises:
            InputError: an unknown name, an invalid value, or no account.
        """
        for name in settings:
            values.known("setting of a Slurm job", name, [one.name for one in fields(cls)])
        if "account" not in settings:
            raise InputError("a Slurm job needs an account: give account=NAME")
        numbers = {n: int(v) for n, v in settings.items() if n in {"gpus", "cpus"} and v.isdigit()}
        return cls(**{**settings, **numbers})  # type: ignore[arg-type]  # checked above


def _match(name: str, value: object, pattern: str, need: str) -> None:
    if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
        values.refuse(name, value, need)


def _one_line(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.isprintable() or value[:1] in {"", "-"}:
        values.refuse(name, value, "a text of one line that does not begin with a dash")


def command(
    kind: str, model: str | None, gpus: int = 1, options: Mapping[str, str] | None = None
) -> list[str]:
    """The `workbench serve` line, without host and port.

    Args:
        kind: "diffusion" or "vllm".
        model: hub name or folder; None is the embedded model.
        gpus: the GPUs for diffusion workers, or for vLLM's tensor parallelism.
        options: settings of the server, by name.

    Raises:
        InputError: an unknown kind, or a model or option that cannot be passed.
    """
    flags = FLAGS[values.known("kind", kind, FLAGS)]
    values.optional("model", model, _one_line)
    settings = {name.replace("-", "_"): value for name, value in (options or {}).items()}
    for name in settings:
        _match("option", name, r"[a-z][a-z0-9_]*", "a name like batch_size")
        if name in RESERVED:
            raise InputError(f"option {name!r} cannot be set: {RESERVED[name]}")
    line = ["workbench", "serve", kind]
    if kind == "diffusion":
        line += [] if model is None else ["--model-path", model]
        line += ["--num_gpus", str(gpus)] if gpus > 1 else []
    elif gpus > 1 and "preset" not in settings:
        settings = {"tensor_parallel_size": str(gpus)} | settings
    given_flags = [name for name in flags if name in settings]
    line += [f"--{name.replace('_', '-')}={settings.pop(name)}" for name in given_flags]
    line += [f"--option={name}={value}" for name, value in settings.items()]
    return line if model is None or kind == "diffusion" else [*line, model]


def script(
    job: SlurmJob,
    line: Sequence[str],
    *,
    folder: Path,
    array: str | None = None,
    mounts: Sequence[Path | str] = (),
) -> str:
    """The script of a job that runs a command, and starts it again after a fault of its node.

    Args:
        job: the resources to request.
        line: the command.
        folder: for the log; it must exist when the job starts.
        array: the tasks, such as "0-99%8": a hundred, at most eight at a time; None: one job.
        mounts: other paths that a container needs.

    Raises:
        InputError: a value that Slurm or the shell could misinterpret.
    """
    run = " ".join(["exec", *_container(job, mounts), _quoted(line)])  # it receives the signals
    begin = ["#!/bin/bash", *_directives(job, folder, array), "set -euo pipefail"]
    return "\n".join([*begin, *_activation(job), run, ""])


def server_script(
    job: SlurmJob,
    line: Sequence[str],
    *,
    model: str | None,
    folder: Path,
    replicas: int = 1,
    port: int | None = None,
    key_file: Path | None = None,
) -> str:
    """The script of a server, or of an array of servers.

    Args:
        job: the resources to request.
        line: the command that starts the server and accepts `--host` and `--port`; see `command`.
        model: for the readiness file, `<job name>-<job id>.json`; in an array the id is
            `<array's id>_<number>`.
        folder: for that file and the log; it must exist when the job starts.
        replicas: servers; more than one are an array.
        port: None chooses a free one on the node.
        key_file: a file with the API key that only its owner can read; None uses WORKBENCH_API_KEY
            from the job's environment, if it is set.

    Raises:
        InputError: a value that Slurm or the shell could misinterpret.
    """
    values.optional("port", port, values.whole, 1, 2**16 - 1)
    values.optional("key_file", key_file and str(key_file), _one_line)
    array = f"0-{values.whole('replicas', replicas, 1) - 1}" if replicas != 1 else None
    # The signal goes to the script, a minute before the time limit.
    directives = [*_directives(job, folder, array), "#SBATCH --signal=B:TERM@60"]
    variables = {
        "port": str(port or ""),
        "key_file": str(key_file or ""),
        "model": json.dumps(model),
        "ready": f"{folder}/{job.name}",
    }
    settings = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    paths = [model] if model is not None and model.startswith("/") else []
    settings += ["serve=(", *_container(job, paths), _quoted(line), ")", *_activation(job)]
    text = TEMPLATE.read_text(encoding="utf-8")
    text = text.replace("# (directives)", "\n".join(directives), 1)
    return text.replace("# (settings)", "\n".join(settings), 1)


def _directives(job: SlurmJob, folder: Path, array: str | None) -> list[str]:
    _match("folder", str(folder), FOLDER, "a path of letters, digits, and _ . / @ + = -")
    requests = {
        "job-name": job.name,
        "account": job.account,
        "partition": job.partition,
        "nodes": 1,
        "ntasks": 1,
        "gres": f"gpu:{job.gpus}" if job.gpus else None,
        "cpus-per-task": job.cpus,
        "mem": job.mem,
        "time": job.time,
        "array": array,
        "output": f"{folder}/{job.name}-{'%A_%a' if array else '%j'}.log",
        "open-mode": "append",  # what a job said before it was started again stays
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in requests.items() if value]
    return [*lines, "#SBATCH --requeue"]


def _quoted(line: Sequence[str]) -> str:
    for word in line:
        if not word.isprintable():
            values.refuse("argument", word, "of one line, without control codes")
    return shlex.join(line)


def _activation(job: SlurmJob) -> list[str]:
    if job.environment is None:
        return []
    quoted = shlex.quote(job.environment)
    conda = ['eval "$("${CONDA_EXE:-conda}" shell.bash hook)"', f"conda activate {quoted}"]
    lines = [f"source {quoted}/bin/activate"] if "/" in job.environment else conda
    return ["set +u  # activation reads variables that are not set", *lines, "set -u"]


def _container(job: SlurmJob, paths: Sequence[Path | str]) -> list[str]:
    """The command for an image that can read this folder, the user's home and these paths."""
    if job.container is None:
        return []
    image, mounts = shlex.quote(job.container), []
    for path in map(str, paths):
        if re.search("[,:]", path):
            raise InputError(f"{path!r}: a path with , or : cannot be mounted in a container")
        mounts.append(shlex.quote(f"{path}:{path}"))
    if job.container.endswith(".sif"):
        return ["apptainer exec --nv", *(f"--bind {mount}" for mount in mounts), image]
    together = ",".join(['"$PWD:$PWD"', *mounts])
    return [
        f"srun --ntasks=1 --export=ALL --container-image={image} --container-mount-home",
        *([f"--cpus-per-task={job.cpus}"] if job.cpus else []),
        f'--container-workdir="$PWD" --container-mounts={together}',
    ]


def submit(text: str, *, private: bool = False) -> str:
    """Submit a script with sbatch, which also passes on our environment.

    Args:
        text: the script.
        private: only its owner can read what the job writes.

    Returns:
        The job's id, as `4711` or, where Slurm names the cluster, `4711;cluster`.

    Raises:
        EngineUnavailableError: there is no sbatch here.
        EngineError: sbatch refused the script, or printed no id; quotes its message.
    """
    done = _asked("sbatch", "--parsable", text=text, umask=0o077 if private else -1)
    if done.returncode != 0:
        raise EngineError(f"sbatch ended with code {done.returncode}: {done.stderr.strip()}")
    last = done.stdout.strip().rpartition("\n")[2].strip()  # a site's message may come first
    if (found := re.fullmatch(SUBMITTED, last, re.ASCII)) is None:
        raise EngineError(
            f"sbatch printed no job's id, but {done.stdout!r}: `squeue --me` says whether there is "
            "a job"
        )
    return ";".join(filter(None, found.groups()))


@dataclass(frozen=True, slots=True)
class TaskState:
    """What Slurm says of a task: its state, such as RUNNING, why, and its seconds so far."""

    state: str
    reason: str
    seconds: float

    @property
    def ended(self) -> bool:
        """Whether the task will not run any more."""
        return self.state in ENDED


def states(job: str) -> dict[str, TaskState] | None:
    """The tasks of an array, by number; empty once Slurm has forgotten it; None: no answer."""
    identity, cluster = _named(job)
    about = ["--noheader", "--array", "--all", "--states=all", f"--jobs={identity}", *cluster]
    try:
        done = _asked("squeue", *about, "--format=%K|%T|%r|%M")
    except (EngineUnavailableError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return {} if "Invalid job id" in done.stderr else None
    rows = [line.split("|") for line in done.stdout.splitlines()]
    return {row[0]: TaskState(row[1], row[2], _seconds(row[3])) for row in rows if len(row) == 4}


def cancel(job: str, patience: float = 120.0) -> None:
    """Cancel a job or an array, and wait until nothing of it runs.

    Raises:
        EngineUnavailableError: there is no scancel here.
        EngineError: it still runs after so many seconds, or Slurm does not answer.
    """
    limit = time.monotonic() + patience
    identity, cluster = _named(job)
    line = ["scancel", *cluster, identity]
    try:
        said = _asked(*line).stderr.strip()
    except subprocess.TimeoutExpired as error:
        said = f"scancel did not answer in {error.timeout:g} s"
    while (left := states(job)) is None or not all(one.ended for one in left.values()):
        if time.monotonic() > limit:
            way = shlex.join(line)
            raise EngineError(f"job {identity} may still run: cancel it with `{way}`. {said}")
        time.sleep(0.5)


def _named(job: str) -> tuple[str, list[str]]:
    """A job's id, and the option for the cluster that it is on, if that is named."""
    identity, _, cluster = job.partition(";")
    return identity, [f"--clusters={cluster}"] if cluster else []


def program(name: str) -> str:
    """The path of a program of Slurm.

    Raises:
        EngineUnavailableError: it is not here.
    """
    if (path := shutil.which(name)) is None:
        raise EngineUnavailableError(
            f"{name} is not on the PATH: run this on a login node of the cluster; for a server, "
            "you can also write the script to a file and submit it there"
        )
    return path


def _asked(
    name: str, *arguments: str, text: str | None = None, umask: int = -1
) -> subprocess.CompletedProcess[str]:
    path = program(name)
    try:
        return subprocess.run(
            [path, *arguments], input=text, capture_output=True, check=False, umask=umask,
            timeout=None if text else 60, encoding="utf-8", errors="replace",
        )  # fmt: skip
    except OSError as error:  # for example no memory for another process
        raise EngineUnavailableError(f"{path} cannot be run: {error}") from error


def _seconds(clock: str) -> float:
    """Seconds of D-HH:MM:SS or MM:SS."""
    days, _, rest = clock.rpartition("-")
    total = 0
    for part in rest.split(":"):
        total = 60 * total + (int(part) if part.isdigit() else 0)
    return total + 86400 * int(days or 0)
