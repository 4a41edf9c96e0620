"""What is seen of a training while it runs: a curve on test films, scalars for TensorBoard, rows for a dashboard."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from fedbone.federation.evaluation import Predictions, evaluate
from fedbone.imaging.dataset import HospitalData

OnRow = Callable[[str, dict], None]
CURVE_POINTS = 6  # evaluations on the test films along a run, for the figure alone: nothing is selected by them


class Monitor:
    """What an arm does after each round: report progress, write scalars, now and then look at the test films.

    shown(rounds): film presentations until then; log_dir: folder of TensorBoard's scalars, or None; ``tick(name, row)``
    is called after each round.
    """

    def __init__(
        self,
        name: str,
        hospitals: list[HospitalData],
        rounds: int,
        shown: Callable[[int], int],
        log_dir: Path | None,
        tick: OnRow,
    ) -> None:
        self.name, self.hospitals, self.rounds, self.shown, self.tick = name, hospitals, rounds, shown, tick
        self.curve: list[dict] = []
        self.every = max(1, rounds // CURVE_POINTS)
        self.log, self.writer = log_dir and log_dir / name, None

    def after_round(
        self, index: int, predictions: Callable[[], Predictions], losses: dict[str, float], hospitals: dict | None
    ) -> None:
        """``predictions``: on the test films, asked for when needed; ``hospitals``: a federation's row for each one."""
        scalars = {f"loss/{name}": value for name, value in losses.items()}
        row = {"round": index, "hospitals": hospitals, "per_joint": None, "mre_px": None}
        if index == self.rounds - 1 or (index + 1) % self.every == 0:
            metrics = evaluate(predictions(), self.hospitals)
            scores = {name: metrics[name] for name in ("pck_0_05", "mre_px")}
            self.curve.append({"round": index + 1, "presentations": self.shown(index + 1), **scores})
            scalars |= {f"test/{name}": value for name, value in scores.items()}
            row["per_joint"] = {joint: found["pck_0_05"] for joint, found in metrics["per_joint"].items()}
            row["mre_px"] = metrics["mre_px"]
        if self.log:
            self._write(index, scalars)
        self.tick(self.name, row)

    def _write(self, index: int, scalars: dict[str, float]) -> None:
        """Add to the log; what it has of this round and later ones, and of another run, is not shown any more."""
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter  # three seconds of imports that only a log needs

            if index == 0:
                shutil.rmtree(self.log, ignore_errors=True)
            self.writer = SummaryWriter(str(self.log), purge_step=index + 1)
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, index + 1)
        self.writer.flush()
