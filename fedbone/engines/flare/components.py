"""Parts that FLARE loads at every party in place of its own, which cannot stand a space in a path or a moved folder."""

from __future__ import annotations

import os
import shlex
import sys

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobProcessArgs
from nvflare.app_common.job_launcher.process_launcher import ProcessJobLauncher
from nvflare.app_common.storages.filesystem_storage import FilesystemStorage
from nvflare.utils.job_launcher_utils import get_client_job_args, get_server_job_args


class KitStorage(FilesystemStorage):
    """FLARE's, in ``folder`` of the kit, wherever the kit is; FLARE runs with the kit as its working folder."""

    def __init__(self, folder: str) -> None:
        super().__init__(root_dir=os.path.abspath(folder))


class HospitalJobs(ProcessJobLauncher):
    """Starts the job processes of a hospital."""

    def get_command(self, job_meta: dict, fl_ctx: FLContext) -> str:
        """The command, quoted: FLARE splits it at spaces again."""
        return _quoted(fl_ctx, get_client_job_args())


class ServerJobs(ProcessJobLauncher):
    """Starts the job processes of the server."""

    def get_command(self, job_meta: dict, fl_ctx: FLContext) -> str:
        """The command, quoted: FLARE splits it at spaces again."""
        return _quoted(fl_ctx, get_server_job_args())


def _quoted(fl_ctx: FLContext, names: list[str]) -> str:
    values = fl_ctx.get_prop(FLContextKey.JOB_PROCESS_ARGS)
    command = [sys.executable, "-u"]
    for name in names:
        option, value = values.get(name) or (None, None)
        if option:
            # --set takes several words; every other value is one
            command += [option, *(str(value).split() if name == JobProcessArgs.OPTIONS else [str(value)])]
    return shlex.join(command)
