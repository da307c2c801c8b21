"""vLLM's server, started by `serve` in a process of its own; it names the revision that it serves.

The revision is for clients, whose stored answers rest on it. It follows the same rule as for a
model in process (`engines.identity`), from what vLLM makes of the options: "auto" is no dtype.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from workbench.engines.folder import safe_format
from workbench.engines.identity import variant

__all__ = ["GUARD", "TOLD", "main"]

TOLD = "WORKBENCH_SERVED"  # name, weights and options, of the process that starts this one
GUARD = "workbench.serving.key.Guard"


def main() -> None:
    """Serve, with a second name for the model where its revision is known."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server import entry
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    told = json.loads(os.environ[TOLD])
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args()
    config: Any = AsyncEngineArgs.from_cli_args(arguments).create_model_config()
    revision = told["weights"] or getattr(config.hf_config, "_commit_hash", None)
    names = [told["name"]]
    if revision:
        dtype = str(config.dtype).removeprefix("torch.")
        names.append(f"{told['name']}@{variant(revision, dtype, told['options'])}")
    form = safe_format(arguments.model, arguments.load_format, arguments.revision)
    sys.argv += ["--load-format", form, "--served-model-name", *names, "--middleware", GUARD]
    entry.main()


if __name__ == "__main__":
    main()
