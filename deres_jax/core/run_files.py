# SPDX-License-Identifier: Apache-2.0
"""The JSON files of a run and of a sweep: their fields, and how a damaged file is refused.

RUN/config.json      `RunConfig`
RUN/result.json      `Result`, once the run is finished
RUN/metrics.jsonl    `MetricsLine`, one a line
RUN/failed.json      `Failure` of the last attempt, until the run finishes
SWEEP/sweep.json     a list of `SweepPoint`
SWEEP/costs.json     `Cost` by id

Fields that no command reads back are not declared here and are ignored. Every reader raises
UserError with the file, the place in it, what is wrong and the caller's advice.
"""

import pathlib
from typing import Annotated, Any

import msgspec

from deres_jax.core import files

_Auc = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Positive = Annotated[float, msgspec.Meta(gt=0)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Value = str | int | float | bool  # of a config field


class RunConfig(msgspec.Struct):
  """The config of a run, and its data by the checksums of the splits."""

  config: dict[str, Any]
  identity: dict[str, _Value]
  data_content: dict[str, str]


class Device(msgspec.Struct):
  """The devices of a run."""

  kind: str
  count: _Count


class PlantedFigures(msgspec.Struct):
  """Figures of a planted split: of its teacher (Bayes) and of the best additive predictor."""

  bayes_auc: _Auc
  bayes_logloss: float
  linear_auc: _Auc


class Planted(msgspec.Struct):
  """Figures of a known teacher by split; empty for other data."""

  splits: dict[str, PlantedFigures] = {}


class Result(msgspec.Struct, kw_only=True):
  """A finished run. Figures without a prefix are of the test split; null: not defined on it."""

  config_hash: str
  seed: int
  backbone: str
  connector: str
  depth: _Count
  dim: _Count
  auc: _Auc | None
  auc_se: float | None
  auc_validation: _Auc | None
  logloss: float
  calibration: float | None
  rows: _Count
  params_dense: _Count
  flops_forward_per_row: _Positive
  flops_connector_extra: float
  train_flops: _Positive
  rows_per_second: _Positive
  steps: _Count
  wall_seconds: float
  device: Device
  versions: dict[str, str]
  dataset: str
  data_content: dict[str, str]
  planted: Planted
  allocator: str = 'unknown'  # results of earlier versions lack it

  @property
  def bayes(self) -> PlantedFigures | None:
    """Figures of the teacher that drew the labels of the test split; None without one."""
    return self.planted.splits.get('test')

  @property
  def devices_text(self) -> str:
    """Formats the devices: '8 x TPU v5e'."""
    return f'{self.device.count} x {self.device.kind}'

  @property
  def versions_text(self) -> str:
    """Formats the versions: 'python 3.11.7, jax 0.10.2'."""
    return ', '.join(f'{name} {version}' for name, version in self.versions.items())


class MetricsLine(msgspec.Struct):
  """Figures of a split after a number of steps."""

  step: _Count
  split: str
  auc: float | None = None


class SweepPoint(msgspec.Struct):
  """A run that a sweep lists. Its id is the name of its folder; its name is printed."""

  id: Annotated[str, msgspec.Meta(pattern=r'\A[0-9A-Za-z]{1,64}\Z')]
  name: str
  seed: int
  overrides: dict[str, _Value]

  def __post_init__(self):
    if not self.name.isprintable():
      raise ValueError('expected a name without control characters')


class Failure(msgspec.Struct):
  """How the last attempt of a run failed."""

  id: str
  name: str
  seed: int
  how: str
  last_line: str
  log: str
  attempts: int


class Cost(msgspec.Struct):
  """The predicted cost of a run: FLOPs as result.json counts them, peak bytes of main memory."""

  train_flops: Annotated[float, msgspec.Meta(ge=0)]
  steps: _Count
  memory: _Count


def read_config(workdir: pathlib.Path, advice: str) -> RunConfig | None:
  """Reads config.json of a run; None where there is none."""
  file = workdir / 'config.json'
  return files.read_json(file, RunConfig, advice) if file.exists() else None


def read_result(workdir: pathlib.Path, advice: str) -> Result | None:
  """Reads result.json of a run; None where there is none: the run is not finished."""
  file = workdir / 'result.json'
  return files.read_json(file, Result, advice) if file.exists() else None


def read_metrics(workdir: pathlib.Path, advice: str) -> list[MetricsLine]:
  """Reads metrics.jsonl of a finished run, every line of which must be whole."""
  file = workdir / 'metrics.jsonl'
  lines = files.read_bytes(file, advice).splitlines()
  return [
    files.decode_json(line, MetricsLine, f'{file} line {number}', advice)
    for number, line in enumerate(lines, 1)
  ]


def read_sweep(folder: pathlib.Path, advice: str) -> list[SweepPoint]:
  """Reads sweep.json of a sweep's folder; an empty list where there is none."""
  file = folder / 'sweep.json'
  return files.read_json(file, list[SweepPoint], advice) if file.exists() else []
