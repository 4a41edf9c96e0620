"""Executes the notebooks: into build/workbook for reading (``make run``), or back into notebooks/ (``make notebooks``).

One kernel process per notebook, started with this interpreter whatever kernels the machine knows. A kernel never
outlives its notebook: it is killed on Ctrl-C, and ends by itself within a second when this process is killed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from fedbone import config
from fedbone.environment import KERNEL, KERNEL_TITLE
from fedbone.errors import UserError
from fedbone.files import write_atomic
from fedbone.progress import NOTE
from fedbone.teaching import book, claims, prose
from fedbone.teaching.following import Follower, expected, variables

NOTEBOOKS = config.REPOSITORY / "notebooks"
CELL_SECONDS = 1800
GPU_CELL_SECONDS = 4 * 3600  # W32 at 512 px: all arms of notebook 05 in one cell, estimated at an hour on a T4
LOOK_EVERY_S = 2.0  # at a running notebook's progress
RESULT_KEYS = (
    "schema_version profile data seed rounds presentations joints n_train n_test pooled federated local "
    "vector_sha256 torch device seconds"
).split()
NOISE = ("application/vnd.jupyter.widget-view+json",)  # output kinds that differ in every run and mean nothing in git
CELL_NOISE = ("execution", "ExecuteTime", "collapsed", "scrolled", "jupyter", "trusted")


class CellFailure(Exception):
    """A notebook stopped: notebook (file name), cell (1 = first, text cells count too), source, reason (traceback)."""

    def __init__(self, notebook: str, cell: int, source: str, reason: str) -> None:
        self.notebook, self.cell, self.source, self.reason = notebook, cell, source, reason
        super().__init__(f"{notebook}, cell {cell}:\n{_indented(source)}\n\n{reason.strip()}")


def chapters(folder: Path = NOTEBOOKS, names: Sequence[str] = ()) -> list[Path]:
    """The notebooks of ``folder`` in order; with ``names`` only those whose file name begins with one of them.

    Raises UserError when there is none, or when a name fits none.
    """
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    for name in names or [""]:
        if not any(path.name.startswith(Path(name).name) for path in found):
            raise UserError(folder, f"no notebook begins with {name!r}", "Names look like 03 or 03_hrnet.ipynb")
    return [path for path in found if path.name.startswith(tuple(Path(n).name for n in names) or "")]


def kernel_environment() -> dict[str, str]:
    """The environment variables for kernels: no progress bars, nothing read from or written to the reader's home."""
    home = config.build_dir() / "home"
    places = {"IPYTHONDIR": "ipython", "JUPYTER_RUNTIME_DIR": "runtime", "MPLCONFIGDIR": "matplotlib"}
    for folder in places.values():
        (home / folder).mkdir(parents=True, exist_ok=True)
    return {
        **{k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "PYTEST_CURRENT_TEST")},
        **{variable: str(home / folder) for variable, folder in places.items()},
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "TQDM_DISABLE": "1",
        "PYTHONHASHSEED": "0",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else Python 3.12 prints a debugger warning into the first cell
    }


def execute(path: Path, extra: dict[str, str] | None = None, look: Callable[[], object] | None = None) -> NotebookNode:
    """The notebook at ``path``, executed in its own folder from a clean state; the file itself is not touched.

    extra: environment variables for the kernel on top of kernel_environment(). ``look`` is called while it runs.
    Raises CellFailure for an exception, a cell over CELL_SECONDS, or a kernel that dies.
    """
    environment = {**kernel_environment(), **(extra or {})}
    notebook = _blank(nbformat.read(path, as_version=4))
    kernel = AsyncKernelManager(
        kernel_name=NATIVE_KERNEL_NAME,
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),  # empty: the native kernel is this interpreter
        connection_file=str(Path(environment["JUPYTER_RUNTIME_DIR"]) / f"kernel-{uuid.uuid4()}.json"),
        transport_encryption="auto",
    )
    at = [0]
    client = NotebookClient(
        notebook,
        km=kernel,
        timeout=CELL_SECONDS if environment.get("FEDBONE_PROFILE", "cpu") == "cpu" else GPU_CELL_SECONDS,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_start=lambda cell, cell_index: at.__setitem__(0, cell_index),
    )
    # In a thread of its own nbclient leaves Ctrl-C alone, and it ends this wait at once.
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(client.execute, cleanup_kc=True, env=environment)
        try:
            while look and not wait([job], timeout=LOOK_EVERY_S).done:
                look()
            job.result()
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            cell = notebook.cells[at[0]]
            raise CellFailure(path.name, at[0] + 1, cell.source, _traceback(cell) or str(error)) from None
        except BaseException:
            _kill(kernel)
            raise
    return notebook


def build(notebooks: Path = NOTEBOOKS, results: Path | None = None, profile: str | None = None) -> int:
    """Execute all notebooks in order and write the book; the exit code: 1 when a cell or the results are wrong.

    Raises UserError for a ``profile`` (default: FEDBONE_PROFILE) that this machine cannot run.
    """
    chosen, build_dir, paths = config.get_profile(profile), config.build_dir(), chapters(notebooks)
    started, note = time.time(), build_dir / "progress.json"
    out, results = build_dir / "workbook", results or build_dir / "results.json"
    pages = []
    _say(expected(chosen))
    for number, path in enumerate(paths, 1):
        begin, follower = time.perf_counter(), Follower(note, chosen, _say)
        _say(f"[{number}/{len(paths)}] {path.name} ...", end=" ")
        try:
            notebook = prose.bind(normalise(execute(path, {NOTE: str(note), **variables(profile)}, follower)))
        except CellFailure as failure:
            _say(f"FAILED after {time.perf_counter() - begin:.0f} s\n\n{failure}")
            return 1
        seconds = time.perf_counter() - begin
        write_atomic(out / path.name, _text(notebook))
        pages.append(book.write_chapter(out, path.stem, notebook, seconds))
        _say(f"{follower.indent}ok, {seconds:.0f} s")
    problem = results_problem(results, started)
    if problem:
        _say(problem)
        return 1
    if notebooks == NOTEBOOKS and config.is_full_run() and not config.own_data():
        claims.write([out / path.name for path in paths], build_dir / "claims.json")
    index = book.write_index(out, pages, json.loads(results.read_text(encoding="utf-8")))
    _say(f"Done in {time.time() - started:.0f} s. Read {index}; the figures are in {results}")
    return 0


def results_problem(path: Path, started: float) -> str | None:
    """What is wrong with the results that notebook 05 should have written since ``started`` (a time.time())."""
    if not path.exists() or path.stat().st_mtime < started - 2:  # file systems round times
        return f"{path}: not written in this run; notebook 05 writes it in its last part"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"{path}: not valid JSON ({error})"
    missing = [key for key in RESULT_KEYS if key not in content]
    return f"{path}: lacks {', '.join(missing)}" if missing else None


def write_back(names: Sequence[str] = (), folder: Path = NOTEBOOKS) -> int:
    """Execute notebooks and write them back with their outputs, ready to commit; the exit code."""
    if config.own_data() or not config.is_full_run():
        raise UserError(
            "FEDBONE_DATA, FEDBONE_ROUNDS",
            "committed outputs come from the workbook's own hospitals and full training",
            "Unset both and run make notebooks again",
        )
    for path in chapters(folder, names):
        _say(f"{path.name} ...", end=" ")
        begin = time.perf_counter()
        try:
            notebook = execute(path)
        except CellFailure as failure:
            _say(f"FAILED, not written\n\n{failure}")
            return 1
        write_atomic(path, _text(prose.bind(normalise(notebook))))
        _say(f"written, {time.perf_counter() - begin:.0f} s")
    return 0


def normalise(notebook: NotebookNode) -> NotebookNode:
    """The same notebook without what differs from run to run (widget state, timings, Python version); counts 1..n."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": KERNEL_TITLE, "language": "python", "name": KERNEL},
            "language_info": {"name": "python"},
        }
    )
    count = 0
    for cell in notebook.cells:
        for key in CELL_NOISE:
            cell.metadata.pop(key, None)
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
            for kind in NOISE:
                output.get("data", {}).pop(kind, None)
    return notebook


def lab(profile: str | None = None) -> int:
    """JupyterLab on the first notebook, until it is closed; the exit code."""
    first = chapters()[0]
    environment = {**os.environ, "PATH": kernel_environment()["PATH"], **variables(profile)}
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={config.REPOSITORY}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # a container: Jupyter refuses root otherwise
    return subprocess.call([*command, str(first)], env=environment)


def _blank(notebook: NotebookNode) -> NotebookNode:
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def _text(notebook: NotebookNode) -> bytes:
    return (nbformat.writes(notebook).rstrip("\n") + "\n").encode()


def _traceback(cell: NotebookNode) -> str:
    """The error output of a cell, in colour only for a terminal; '' when it has none."""
    lines = [line for output in cell.outputs if output.output_type == "error" for line in output.traceback]
    text = "\n".join(lines)
    return text if sys.stderr.isatty() else re.sub(r"\x1b\[[0-9;]*m", "", text)


def _indented(source: str) -> str:
    return "\n".join("    " + line for line in source.splitlines())


def _kill(kernel: AsyncKernelManager) -> None:
    """Kill a kernel with everything that it started."""
    process = getattr(kernel.provisioner, "process", None)
    if process is None or process.poll() is not None:
        return
    if os.name == "nt":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)
