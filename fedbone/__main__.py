"""The few commands a shell needs: ``python -m fedbone COMMAND``; ``--help`` lists them.

The first group works in the repository's own environment, which it builds when it is missing; the second in the
Python that runs it. Exit codes: 0 done, 1 something failed and was reported, 2 an input to correct, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from fedbone import environment
from fedbone.custody.audit_command import audit, audit_options
from fedbone.engines.flare.command import deploy, deploy_options
from fedbone.errors import UserError
from fedbone.options import evaluate_options, margins, natural, positive, predict_options

# written out: fedbone.config needs a newer Python than the one that must still read this file to say so
PROFILE_NAMES = ("cpu", "t4", "t4-article", "a100")
PRESET_NAMES = ("w32", "w18", "w18s", "w8n")


def run_workbook(args: argparse.Namespace) -> int:
    """Execute the notebooks in order and build the book."""
    from fedbone.teaching import workbook

    return workbook.build(profile=args.profile)


def run_notebooks(args: argparse.Namespace) -> int:
    """Execute every notebook and every solution and write the outputs back into notebooks/."""
    from fedbone.teaching import workbook
    from fedbone.teaching.exercises import SOLUTIONS

    return workbook.write_back(args.names) or workbook.write_back(
        [Path(name).name[:2] for name in args.names], SOLUTIONS
    )


def run_test(args: argparse.Namespace) -> int:
    """Unit tests, then nbval over the notebooks."""
    from fedbone.teaching import testing

    return testing.test()


def run_test_all(args: argparse.Namespace) -> int:
    """Everything that ``test`` leaves out because it is slow."""
    from fedbone.teaching import testing

    return testing.test_all()


def run_lab(args: argparse.Namespace) -> int:
    """JupyterLab on notebook 00."""
    from fedbone.teaching import workbook

    environment.register_kernel(environment.environment_dir())
    return workbook.lab(args.profile)


def run_federate(args: argparse.Namespace) -> int:
    """Train on the generated hospitals or on a folder of own films."""
    from fedbone.federation import command

    return command.main(args)


def run_train(args: argparse.Namespace) -> int:
    """Train one model on the films of all hospitals together."""
    from fedbone.federation import training_command

    return training_command.main(args)


def run_evaluate(args: argparse.Namespace) -> int:
    """Test models on every hospital's films."""
    from fedbone.federation import evaluation_command

    return evaluation_command.main(args)


def run_sample(args: argparse.Namespace) -> int:
    """Write sample hospitals."""
    from fedbone.imaging.hospitals import write_sample
    from fedbone.progress import Bar

    with Bar("writing films", "film") as progress:
        write_sample(args.out, films=args.films, seed=args.seed, progress=progress)
    return 0


def run_dicom(args: argparse.Namespace) -> int:
    """Turn DICOM files into PNG and frame; standard output gets one line a file and a summary."""
    from tqdm import tqdm  # its write() keeps the lines clear of the bar

    from fedbone.imaging.dicom import convert
    from fedbone.progress import Bar

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal cannot show
    with Bar("reading films", "film") as bar:
        progress = bar if sys.stderr.isatty() else None
        written, problems = convert(args.input, args.out, size_px=args.size, progress=progress, report=tqdm.write)
    print(f"films written: {len(written)}, files refused: {len(problems)}")
    return 0 if written else 1


def run_deidentify(args: argparse.Namespace) -> int:
    """De-identify a folder of films and labels; files that cannot be done are counted, the others are written."""
    from fedbone.imaging.confidentiality import Options
    from fedbone.imaging.deidentify_folder import ORDER, REPORT, deidentify_folder
    from fedbone.progress import Bar

    new_key = not args.key.exists()
    options = Options(not args.remove_dates, args.keep_characteristics, args.blank_margins)
    with Bar("de-identifying", "file") as bar:
        progress = bar if sys.stderr.isatty() else None
        result = deidentify_folder(args.input, args.out, args.key, options, progress)
    if new_key:
        print(f"A new key was written to {args.key}. Keep it at the hospital: it leads from pseudonyms to patients.")
    print(f"films written: {result.films}, label files: {result.labels}, not written: {len(result.problems)}")
    print(f"{args.out / REPORT} says what was removed")
    if result.problems:
        print(*result.problems, ORDER, sep="\n", file=sys.stderr)
    if not result.films:
        return 2
    return 1 if result.problems else 0


def run_predict(args: argparse.Namespace) -> int:
    """Find the joints of one film and draw them on it."""
    from fedbone.model import predict

    return predict.main(args)


def run_clean(args: argparse.Namespace) -> int:
    """Remove build/ and the caches of Python and pytest; .venv and data/ stay."""
    import shutil

    root = environment.REPOSITORY
    caches = [p for top in ("fedbone", "tests", "notebooks") for p in (root / top).rglob("__pycache__")]
    for path in [root / "build", root / ".pytest_cache", root / ".ruff_cache", root / ".hypothesis", *caches]:
        shutil.rmtree(path, ignore_errors=True)
    return 0


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="python -m fedbone", description="Federated bone keypoints: a workbook.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, work, text: str, needs_environment: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(work=work, needs_environment=needs_environment)
        return sub

    book = add("workbook", run_workbook, "execute the notebooks and build build/workbook/index.html (make run)", True)
    add("test", run_test, "unit tests, then the notebooks against their stored results (make test)", True)
    add("test-all", run_test_all, "slow tests, workbook and wheel check (make test-all)", True)
    lab = add("lab", run_lab, "JupyterLab on notebook 00 (make lab)", True)
    sub = add("notebooks", run_notebooks, "execute notebooks and write their outputs back (make notebooks)", True)
    sub.add_argument("names", nargs="*", help="file names or their beginnings, e.g. 03; default: all")
    add("clean", run_clean, "remove build/ and caches; the environment stays (make clean)")
    federate = add("federate", run_federate, "train one model over hospitals: generated ones, or your own films")
    _add_federate(federate)
    train = add("train", run_train, "train one model on the films of all hospitals together; continues after a kill")
    _add_train(train)
    evaluate = add("evaluate", run_evaluate, "how good models are, for whom: per hospital and joint, worst first")
    evaluate_options(evaluate)
    for sub in (book, lab, federate, train, evaluate):
        sub.add_argument("--profile", choices=PROFILE_NAMES, help="default: FEDBONE_PROFILE, else cpu")
    sub = add("sample", run_sample, "write three sample hospitals: DICOM films and COCO keypoints")
    sub.add_argument("out", type=Path, metavar="OUT")
    sub.add_argument("--films", type=positive, default=12, help="films a hospital (default 12)")
    sub.add_argument("--seed", type=natural, default=0)
    sub = add("dicom", run_dicom, "turn DICOM films into 8-bit PNG and the frame that maps back; says one line a file")
    sub.add_argument("input", type=Path, metavar="IN", help="a DICOM file or a folder of them")
    sub.add_argument("out", type=Path, metavar="OUT")
    sub.add_argument("--size", type=positive, default=512, metavar="PX", help="side of the square PNG (default 512)")
    _add_deidentify(add("deidentify", run_deidentify, "copy a hospital's folder of films and labels without names"))
    predict_options(add("predict", run_predict, "find the joints of one DICOM film and draw them on it"))
    audit_options(add("audit", audit, "whether an audit log is as it was written, and what it says"))
    deploy_options(add("deploy", deploy, "server and hospitals as processes of their own, over gRPC with mutual TLS"))
    return top


def _add_deidentify(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("input", type=Path, metavar="IN", help="folder with DICOM films and annotations.json")
    sub.add_argument("out", type=Path, metavar="OUT", help="new folder, or that of an earlier run with the same key")
    sub.add_argument("--key", type=Path, required=True, metavar="FILE", help="the hospital's secret; made when missing")
    sub.add_argument("--blank-margins", type=margins, metavar="PERCENT", help="8, or top,right,bottom,left: 8,0,0,5")
    sub.add_argument("--remove-dates", action="store_true", help="empty all dates (default: shifted for each patient)")
    sub.add_argument("--keep-characteristics", action="store_true", help="keep sex, age up to 89, size and weight")


def _add_films_and_schedule(sub: argparse.ArgumentParser, written: str) -> None:
    sub.add_argument("--data", type=Path, help="folder with one sub-folder per hospital (default: generated hospitals)")
    sub.add_argument("--out", type=Path, required=True, help=f"folder for {written}")
    sub.add_argument("--rounds", type=positive, help="each shows a quarter of the films; default: the profile's")
    sub.add_argument("--size", type=positive, metavar="PX", help="side of the square input; default: the profile's")
    sub.add_argument("--preset", choices=PRESET_NAMES, help="the HRNet; default: the profile's")
    sub.add_argument("--micro-batch", type=positive, metavar="FILMS", help="films a pass; a batch is several passes")
    sub.add_argument("--checkpointing", action="store_true", help="less memory, more time; the same model")
    sub.add_argument("--seed", type=natural, default=0)
    sub.add_argument("--split-by-file", action="store_true", help="films without a patient id may be split by file")


def _add_federate(sub: argparse.ArgumentParser) -> None:
    _add_films_and_schedule(sub, "model.safetensors, history.csv, results.json")
    sub.add_argument("--compare", action="store_true", help="also train local-only and pooled, same presentations")


def _add_train(sub: argparse.ArgumentParser) -> None:
    _add_films_and_schedule(sub, "model.safetensors, results.json and the state to continue from")
    text = "imagenet, imagenet=FILE with timm's weights, or a checkpoint of fedbone; default: random weights"
    sub.add_argument("--start", metavar="FROM", help=text)
    text = "GroupNorm, or BatchNorm, which alone can take all of ImageNet's weights but cannot be federated"
    sub.add_argument("--norm", choices=("group", "batch"), help=f"{text}; default: the profile's")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; every error a user can correct ends in one line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parser().parse_args(arguments)
    for variable in ("FEDBONE_DATA", "FEDBONE_BUILD", "FEDBONE_VENV"):  # kernels and tests work in other folders
        if os.environ.get(variable):
            os.environ[variable] = str(Path(os.environ[variable]).expanduser().absolute())
    try:
        if args.needs_environment:
            environment.enter(arguments)
        else:
            environment.check_python()
        return args.work(args)
    except UserError as error:
        # what else was found on the way rides along as notes
        print(error, *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a read-only folder: nothing half-written is left
        if error.filename is None:
            raise
        print(f"{error.filename}: {error.strerror}. Name a folder that you can write to", file=sys.stderr)
        return 2
    except ImportError as error:
        if (error.name or "").startswith("fedbone"):  # ours: a defect, not a missing package
            raise
        from fedbone.teaching.setup import explain_import

        print(explain_import(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped (Ctrl-C); nothing half-written is left.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
