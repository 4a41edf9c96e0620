"""What a party's own FLARE allows, whoever submits a job: its parts, who may do what, and where it writes."""

from __future__ import annotations

from nvflare.apis.impl.job_def_manager import SimpleJobDefManager
from nvflare.app_common.job_schedulers.job_scheduler import DefaultJobScheduler
from nvflare.app_common.resource_consumers.gpu_resource_consumer import GPUResourceConsumer
from nvflare.app_common.resource_managers.gpu_resource_manager import GPUResourceManager
from nvflare.app_common.state_persistors.storage_state_persistor import StorageStatePersistor

from fedbone.engines.flare.admission import HospitalValidator, ServerValidator
from fedbone.engines.flare.components import HospitalJobs, KitStorage, ServerJobs
from fedbone.engines.flare.rejoin import Rejoin
from fedbone.engines.flare.security import LoginGate, LoginSender

OURS = "fedbone.engines.flare."  # all that a job may name: FLARE's own classes take commands and paths from the job
HEARTBEAT_TIMEOUT_S = 30  # hospitals send one every 2 s; on a machine under load some come late
LOG_BYTES, LOG_FILES = 5_000_000, 2
WATCHDOG_RIGHTS = ("submit_job", "abort_job", "delete_job", "list_jobs", "get_job_meta", "check_status")
ADMINISTRATOR_RIGHTS = (*WATCHDOG_RIGHTS, "admin_check_status", "shutdown")
# FLARE grants nothing that is not listed. Written out are its categories and the rights that it checks by themselves.
DENIED = ("manage_job", "operate", "view", "shell_commands", "download_job", "clone_job", "byoc")
DENIED += ("server-predeployed-flwr",)


def authorization() -> dict:
    """local/authorization.json, the same at all parties: nobody brings code, reads files or fetches results."""
    denied = dict.fromkeys(DENIED, "none")
    return {
        "format_version": "1.0",
        "permissions": {
            "project_admin": {**denied, **dict.fromkeys(ADMINISTRATOR_RIGHTS, "any")},
            "lead": {**denied, **dict.fromkeys(WATCHDOG_RIGHTS, "any")},
        },
    }


def server_resources(hospitals: int) -> dict:
    """local/resources.json of the server: everything that it keeps lies in its kit."""
    return {
        **_common(),
        "app_validator": _part(ServerValidator),
        "servers": [
            {
                "admin_storage": "transfer",
                "max_num_clients": hospitals,
                "heart_beat_timeout": HEARTBEAT_TIMEOUT_S,
                "admin_timeout": 10.0,
            }
        ],
        "snapshot_persistor": _part(
            StorageStatePersistor, uri_root="/", storage=_part(KitStorage, folder="jobs/snapshots")
        ),
        "components": [
            # one job would do, but FLARE may count one that was lost
            {"id": "job_scheduler", **_part(DefaultJobScheduler, max_jobs=4)},
            {"id": "job_manager", **_part(SimpleJobDefManager, uri_root="jobs/store", job_store_id="job_store")},
            {"id": "job_store", **_part(KitStorage, folder=".")},
            {"id": "process_launcher", **_part(ServerJobs)},
            {"id": "login_gate", **_part(LoginGate)},
            {"id": "rejoin", **_part(Rejoin)},
        ],
    }


def hospital_resources() -> dict:
    """local/resources.json of a hospital. Graphics cards are the training's business: FLARE allots none."""
    cards = {"num_of_gpus": 0, "mem_per_gpu_in_GiB": 0, "expiration_period": 300}
    return {
        **_common(),
        "app_validator": _part(HospitalValidator),
        "allow_log_streaming": False,
        "client": {"retry_timeout": 30, "compression": "Gzip"},
        "components": [
            {"id": "resource_manager", **_part(GPUResourceManager, **cards)},
            {"id": "resource_consumer", **_part(GPUResourceConsumer)},
            {"id": "process_launcher", **_part(HospitalJobs)},
            {"id": "login_sender", **_part(LoginSender)},
        ],
    }


def log_config() -> dict:
    """local/log_config.json: FLARE's log, its errors once more, and standard output, which the supervisor keeps."""
    line = "%(asctime)s - %(name)s - %(levelname)s - %(fl_ctx)s - %(message)s"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"base": {"()": "nvflare.fuel.utils.log_utils.BaseFormatter", "fmt": line}},
        "handlers": {
            "consoleHandler": {"class": "logging.StreamHandler", "formatter": "base", "stream": "ext://sys.stdout"},
            "logFileHandler": _log_file("log.txt", "DEBUG"),
            "errorFileHandler": _log_file("error_log.txt", "ERROR"),
        },
        "loggers": {"root": {"level": "INFO", "handlers": ["consoleHandler", "logFileHandler", "errorFileHandler"]}},
    }


def _common() -> dict:
    return {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": [OURS],
    }


def _part(kind: type, **args: object) -> dict:
    return {"path": f"{kind.__module__}.{kind.__qualname__}", "args": args}


def _log_file(name: str, level: str) -> dict:
    return {
        "class": "logging.handlers.RotatingFileHandler",
        "level": level,
        "formatter": "base",
        "filename": name,
        "maxBytes": LOG_BYTES,
        "backupCount": LOG_FILES,
    }
