"""vLLM's server, started by `serve` in a separate process; it lists the revision that it serves.

Clients' stored answers depend on the revision. It follows the same rule as for a model in this
process (`engines.identity`), from the resolved options: "auto" is not a dtype.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

from workbench.engines.checkpoints.checks import safe_format
from workbench.engines.identity import variant

IDENTITY = "WORKBENCH_SERVED"  # name, weights and options, set by the parent process
GUARD = "workbench.serving.access.KeyGuard"


def main() -> None:
    """Serve, with a second name for the model if its revision is known."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server import entry
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from workbench.engines.cpu import fit

    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("workbench").setLevel(logging.INFO)
    identity = json.loads(os.environ[IDENTITY])
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args()
    engine = AsyncEngineArgs.from_cli_args(arguments)
    config: Any = engine.create_model_config()
    revision = identity["weights"] or getattr(config.hf_config, "_commit_hash", None)
    names = [identity["name"]]
    dtype = str(config.dtype).removeprefix("torch.")
    if current_platform.is_cpu():
        flags = (word.partition("=")[0] for word in sys.argv[1:] if word.startswith("--"))
        asked_for = {flag.removeprefix("--").replace("-", "_") for flag in flags}
        options, _ = fit(engine, asked_for, "server")
        dtype = options["dtype"]
        sys.argv += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    if revision:
        names.append(f"{identity['name']}@{variant(revision, dtype, identity['options'])}")
    form = safe_format(arguments.model, arguments.load_format, arguments.revision)
    sys.argv += ["--load-format", form, "--served-model-name", *names, "--middleware", GUARD]
    entry.main()


if __name__ == "__main__":
    main()
