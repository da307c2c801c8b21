"""A model server as a job of a Slurm cluster: the script that starts it, and its submission.

While the server answers, and only then, a readiness file in the job's folder tells where. The
key is never in the script: it comes from the job's environment or from a file of the user's own.
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

from workbench.errors import EngineError, EngineUnavailableError, InputError

TEMPLATE = Path(__file__).with_name("slurm.sh")
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
TIMES = r"\d+|\d+:[0-5]\d:[0-5]\d|\d+-([01]?\d|2[0-3]):[0-5]\d:[0-5]\d"
FOLDER = r"[A-Za-z0-9_./@+=-]+"  # in it, sbatch gives a meaning to % and blanks

RESERVED = {
    "api_key": "set WORKBENCH_API_KEY in the job's environment, or give a key file",
    "host": "it follows from whether there is a key",
    "model": "give the model itself",
    "model_path": "give the model itself",
    "port": "give port=…",
}


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked of the cluster: one node, for one server.

    Attributes:
        account: who pays.
        gpus: GPUs of the node.
        mem: memory of the node, such as 64G.
        time: the longest it runs: D-HH:MM:SS, HH:MM:SS, or minutes.
        partition: a queue, or several with commas; None is the cluster's default.
        cpus: cores; None is the cluster's default.
        container: an image for the container plugin of srun (pyxis), or the path of a .sif file
            for apptainer.
        environment: a conda environment's name, or a virtual environment's folder (with a slash).
        name: the job's name, which is in the names of its files too.
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
        """Refuse what Slurm or the shell would take for something else."""
        _check("account", self.account, NAME, "a name")
        _check("name", self.name, NAME, "a name")
        _check("mem", self.mem, r"[1-9]\d*[KMGT]", "a size such as 64G")
        _check("time", self.time, TIMES, "D-HH:MM:SS, HH:MM:SS, or a number of minutes")
        if not re.search("[1-9]", self.time):
            raise InputError(f"time={self.time!r} would be no limit at all: give one")
        if self.partition is not None:
            _check("partition", self.partition, f"{NAME}(,{NAME})*", "a name")
        for what, count in (("gpus", self.gpus), ("cpus", self.cpus)):
            if count is not None and (not isinstance(count, int) or count < 1):
                raise InputError(f"{what}={count!r} must be a whole number from 1")
        if self.container is not None and self.environment is not None:
            raise InputError(
                f"container={self.container!r} and environment={self.environment!r}: give one; a "
                "container has its own environment"
            )
        for what, text in (("container", self.container), ("environment", self.environment)):
            if text is not None:
                _check_word(what, text)


def _check(what: str, value: object, pattern: str, meaning: str) -> None:
    if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
        raise InputError(f"{what}={value!r} must be {meaning}")


def _check_word(what: str, text: object) -> None:
    if not isinstance(text, str) or not text or not text.isprintable() or text.startswith("-"):
        raise InputError(
            f"{what}={text!r} must be a text of one line that does not begin with a dash"
        )


def command(
    kind: str, model: str | None, gpus: int = 1, options: Mapping[str, str] | None = None
) -> list[str]:
    """The `workbench serve` line, without host and port.

    Args:
        kind: "diffusion" or "vllm".
        model: hub name or folder; None is the embedded model.
        gpus: over which diffusion workers or vLLM's layers are spread.
        options: settings of the server, by name.

    Raises:
        InputError: an unknown kind, a model or an option that cannot be passed on.
    """
    if kind not in ("diffusion", "vllm"):
        raise InputError(f'kind={kind!r} must be "diffusion" or "vllm"')
    if model is not None:
        _check_word("model", model)
    given = {name.replace("-", "_"): value for name, value in (options or {}).items()}
    for name in given:
        _check("option", name, r"[a-z][a-z0-9_]*", "a name like batch_size")
        if name in RESERVED:
            raise InputError(f"option {name!r} cannot be set: {RESERVED[name]}")
    line = ["workbench", "serve", kind]
    if kind == "vllm":
        line += [f"--{name}={given.pop(name)}" for name in ("preset", "timeout") if name in given]
        if gpus > 1 and not any(word.startswith("--preset") for word in line):
            given = {"tensor_parallel_size": str(gpus)} | given
        line += [f"--option={name}={value}" for name, value in given.items()]
        return line if model is None else [*line, model]
    line += [] if model is None else ["--model-path", model]
    line += ["--num_gpus", str(gpus)] if gpus > 1 else []
    flags = [name for name in ("batch_size", "max_wait_time") if name in given]
    line += [f"--{name.replace('_', '-')}={given.pop(name)}" for name in flags]
    return line + [f"--option={name}={value}" for name, value in given.items()]


def script(
    job: Job,
    line: Sequence[str],
    *,
    model: str | None,
    folder: Path,
    port: int | None = None,
    key_file: Path | None = None,
) -> str:
    """The text for sbatch.

    Args:
        job: what is asked of the cluster.
        line: what starts the server, which also takes `--host` and `--port`; see `command`.
        model: for the readiness file, `<job name>-<job id>.json`.
        folder: for that file and the log; it has to be there when the job starts.
        port: None is a free one, looked for on the node.
        key_file: holds the API key, and nobody else may read it; None takes WORKBENCH_API_KEY from
            the environment of the job, if it is set.

    Raises:
        InputError: a value that could mean something else to Slurm or to the shell.
    """
    _check("folder", str(folder), FOLDER, "a path of letters, digits, and _ . / @ + = -")
    if port is not None and (not isinstance(port, int) or not 0 < port < 2**16):
        raise InputError(f"port={port!r} must be a whole number from 1 to 65535, or None")
    if key_file is not None:
        _check_word("key_file", str(key_file))
    for word in line:
        if not word.isprintable():
            raise InputError(f"the argument {word!r} must be of one line, without control codes")
    values = {
        "port": "" if port is None else str(port),
        "key_file": "" if key_file is None else str(key_file),
        "model": json.dumps(model),
        "ready": f"{folder}/{job.name}",
    }
    serve = [f"  {part}" for part in [*_container(job, model), shlex.join(line)]]
    settings = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    settings += ["serve=(", *serve, ")", *_activation(job)]
    directives = [f"#SBATCH --{setting}" for setting in _settings(job, folder)]
    text = TEMPLATE.read_text(encoding="utf-8")
    for place, lines in (("# (directives)", directives), ("# (settings)", settings)):
        before, _, after = text.partition(place)
        text = before + "\n".join(lines) + after
    return text


def _settings(job: Job, folder: Path) -> list[str]:
    settings = {
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
        "signal": "B:TERM@60",  # to the script, before the time is up
    }
    return [f"{name}={value}" for name, value in settings.items() if value is not None]


def _activation(job: Job) -> list[str]:
    if job.environment is None:
        return []
    quoted = shlex.quote(job.environment)
    conda = ['eval "$("${CONDA_EXE:-conda}" shell.bash hook)"', f"conda activate {quoted}"]
    lines = [f"source {quoted}/bin/activate"] if "/" in job.environment else conda
    return ["set +u  # activation reads variables that are not set", *lines, "set -u"]


def _container(job: Job, model: str | None) -> list[str]:
    """What runs the server in an image that sees this folder, the user's home and the model."""
    if job.container is None:
        return []
    image, local = shlex.quote(job.container), model is not None and model.startswith("/")
    if local and re.search("[,:]", str(model)):
        raise InputError(f"model={model!r}: a path with , or : cannot be shown to a container")
    mount = shlex.quote(f"{model}:{model}")
    if job.container.endswith(".sif"):
        return ["apptainer exec --nv", *([f"--bind {mount}"] if local else []), image]
    return [
        f"srun --ntasks=1 --export=ALL --container-image={image} --container-mount-home",
        *([f"--cpus-per-task={job.cpus}"] if job.cpus else []),
        f'--container-workdir="$PWD" --container-mounts="$PWD:$PWD"{f",{mount}" if local else ""}',
    ]


def tunnel(port: int | None, *, with_key: bool, login: str = "LOGIN") -> list[str]:
    """How to reach the server from elsewhere: two lines for a shell; capitals are to be filled in.

    Args:
        port: None is not known yet.
        with_key: whether the server asks for a key and so listens to the cluster's network.
        login: the cluster's login node, with the user's name.
    """
    at = "PORT" if port is None else str(port)
    way = f"-L {at}:NODE:{at} {login}" if with_key else f"-J {login} -L {at}:127.0.0.1:{at} NODE"
    return [f"ssh -N {way}", f"export WORKBENCH_BASE_URL=http://127.0.0.1:{at}/v1"]


def submit(text: str) -> str:
    """Hand a script to sbatch, which also passes our environment on.

    Returns:
        The job's id.

    Raises:
        EngineUnavailableError: there is no sbatch here.
        EngineError: it refused; quotes what it said.
    """
    program = shutil.which("sbatch")
    if program is None:
        raise EngineUnavailableError(
            "sbatch is not on the PATH: submit on a login node of the cluster, or write the script "
            "to a file and take it there"
        )
    done = subprocess.run(
        [program, "--parsable"], input=text, capture_output=True, text=True, check=False,
        umask=0o077,  # sbatch passes it on: the job's log is for its owner
    )  # fmt: skip
    if done.returncode != 0:
        raise EngineError(f"sbatch ended with code {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]  # the cluster's name may follow
