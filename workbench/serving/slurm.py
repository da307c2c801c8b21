"""A model server as a job of a Slurm cluster: its script and submission.

While the server answers, a readiness file in the job's folder has its address. The script never
contains the key, which comes from the job's environment or from a file of the user.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench import values
from workbench.errors import EngineError, EngineUnavailableError, InputError

TEMPLATE = Path(__file__).with_name("slurm.sh")
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
TIMES = r"\d+|\d+:[0-5]\d:[0-5]\d|\d+-([01]?\d|2[0-3]):[0-5]\d:[0-5]\d"
FOLDER = r"[A-Za-z0-9_./@+=-]+"  # sbatch interprets % and blanks in it

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
    """The resources to request: one node, for one server.

    Attributes:
        account: the account to charge.
        gpus: GPUs of the node.
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
    gpus: int
    mem: str
    time: str
    partition: str | None = None
    cpus: int | None = None
    container: str | None = None
    environment: str | None = None
    name: str = "workbench-serve"

    def __post_init__(self) -> None:
        _match("account", self.account, NAME, "a name")
        _match("name", self.name, NAME, "a name")
        _match("mem", self.mem, r"[1-9]\d*[KMGT]", "a size such as 64G")
        _match("time", self.time, TIMES, "D-HH:MM:SS, HH:MM:SS, or a number of minutes")
        if not re.search("[1-9]", self.time):
            values.refuse("time", self.time, "a limit above 0")
        values.whole("gpus", self.gpus, 1)
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
    model: str | None,
    folder: Path,
    port: int | None = None,
    key_file: Path | None = None,
) -> str:
    """The script for sbatch.

    Args:
        job: the resources to request.
        line: the command that starts the server and accepts `--host` and `--port`; see `command`.
        model: for the readiness file, `<job name>-<job id>.json`.
        folder: for that file and the log; it must exist when the job starts.
        port: None chooses a free one on the node.
        key_file: a file with the API key that only its owner can read; None uses WORKBENCH_API_KEY
            from the job's environment, if it is set.

    Raises:
        InputError: a value that Slurm or the shell could misinterpret.
    """
    _match("folder", str(folder), FOLDER, "a path of letters, digits, and _ . / @ + = -")
    values.optional("port", port, values.whole, 1, 2**16 - 1)
    values.optional("key_file", key_file and str(key_file), _one_line)
    for word in line:
        if not word.isprintable():
            values.refuse("argument", word, "of one line, without control codes")
    requests = {
        "job-name": job.name,
        "account": job.account,
        "partition": job.partition,
        "nodes": 1,
        "ntasks": 1,
        "gres": f"gpu:{job.gpus}",
        "cpus-per-task": job.cpus,
        "mem": job.mem,
        "time": job.time,
        "output": f"{folder}/{job.name}-%j.log",
        "signal": "B:TERM@60",  # to the script, before the time limit
    }
    directives = [f"#SBATCH --{name}={value}" for name, value in requests.items() if value]
    variables = {
        "port": str(port or ""),
        "key_file": str(key_file or ""),
        "model": json.dumps(model),
        "ready": f"{folder}/{job.name}",
    }
    settings = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    settings += ["serve=(", *_container(job, model), shlex.join(line), ")", *_activation(job)]
    text = TEMPLATE.read_text(encoding="utf-8")
    text = text.replace("# (directives)", "\n".join(directives), 1)
    return text.replace("# (settings)", "\n".join(settings), 1)


def _activation(job: SlurmJob) -> list[str]:
    if job.environment is None:
        return []
    quoted = shlex.quote(job.environment)
    conda = ['eval "$("${CONDA_EXE:-conda}" shell.bash hook)"', f"conda activate {quoted}"]
    lines = [f"source {quoted}/bin/activate"] if "/" in job.environment else conda
    return ["set +u  # activation reads variables that are not set", *lines, "set -u"]


def _container(job: SlurmJob, model: str | None) -> list[str]:
    """The command for an image that can read this folder, the user's home and the model."""
    if job.container is None:
        return []
    image, local = shlex.quote(job.container), model is not None and model.startswith("/")
    if local and re.search("[,:]", str(model)):
        raise InputError(f"model={model!r}: a path with , or : cannot be mounted in a container")
    mount = shlex.quote(f"{model}:{model}")
    if job.container.endswith(".sif"):
        return ["apptainer exec --nv", *([f"--bind {mount}"] if local else []), image]
    return [
        f"srun --ntasks=1 --export=ALL --container-image={image} --container-mount-home",
        *([f"--cpus-per-task={job.cpus}"] if job.cpus else []),
        f'--container-workdir="$PWD" --container-mounts="$PWD:$PWD"{f",{mount}" if local else ""}',
    ]


def tunnel(port: int | None, *, with_key: bool, login: str = "LOGIN") -> list[str]:
    """Two shell lines to reach the server from elsewhere, with placeholders in capitals.

    Args:
        port: None is unknown.
        with_key: whether the server requires a key, and so listens on the cluster's network.
        login: the cluster's login node, with the user's name.
    """
    at = "PORT" if port is None else str(port)
    way = f"-L {at}:NODE:{at} {login}" if with_key else f"-J {login} -L {at}:127.0.0.1:{at} NODE"
    return [f"ssh -N {way}", f"export WORKBENCH_BASE_URL=http://127.0.0.1:{at}/v1"]


def submit(text: str) -> str:
    """Submit a script with sbatch, which also passes on our environment.

    Returns:
        The job's id.

    Raises:
        EngineUnavailableError: there is no sbatch here.
        EngineError: sbatch refused the script; quotes its message.
    """
    program = shutil.which("sbatch")
    if program is None:
        raise EngineUnavailableError(
            "sbatch is not on the PATH: submit on a login node of the cluster, or write the script "
            "to a file and copy it there"
        )
    done = subprocess.run(
        [program, "--parsable"], input=text, capture_output=True, text=True, check=False,
        umask=0o077,  # sbatch passes it on: only its owner can read the job's log
    )  # fmt: skip
    if done.returncode != 0:
        raise EngineError(f"sbatch ended with code {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]  # the cluster's name may follow
