# SPDX-License-Identifier: Apache-2.0
"""The builds of `data_pipelines.build`, with their tasks run by Apache Beam.

  pip install -e '.[beam]'
  python -m data_pipelines.beam_build --dataset=criteo --raw=train.txt --out=DIR --runner=NAME ...

Every phase of a build is a list of tasks, pure functions from files to files; here each list is one
Beam pipeline, so the bytes are those of a local build. Flags that `build` does not know are Beam's
pipeline options. --raw and --out must be on storage that all of Beam's workers see under the same
path (a shared or mounted file system), and this package must be installed there: on Dataflow, Flink
and Spark by their --setup_file, --sdk_container_image or --environment_type.
"""

import pickle
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from data_pipelines import build
from data_pipelines.core.cli import guarded
from data_pipelines.core.files import is_zipped
from data_pipelines.prepared.dataset import Dataset
from deres_jax.core import files
from deres_jax.core.errors import UserError


def _run(numbered: tuple[int, Any], function: Callable[[Any], Any], folder: Path) -> None:
  """Runs one task; writes its result, or an error that a user may be able to mend, to a file."""
  number, task = numbered
  try:
    result = function(task)
  except (UserError, OSError, RuntimeError) as error:
    result = error
  with files.replacing(folder / f'{number:06d}', durable=False) as partial:
    partial.write_bytes(pickle.dumps(result))


class BeamWorkers:
  """Runs tasks like workers.Workers; each call of `map` is one pipeline."""

  def __init__(self, options: list[str], folder: Path):
    """Args: Beam's flags, and a folder for results that all workers see and that is removed."""
    self._options, self._folder = options, folder

  def __enter__(self) -> 'BeamWorkers':
    return self

  def __exit__(self, kind, error, trace) -> None:
    shutil.rmtree(self._folder, ignore_errors=True)

  def map(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
    """Yields function(task) for each task, in order; raises the first error of a task."""
    numbered = list(enumerate(tasks))
    shutil.rmtree(self._folder, ignore_errors=True)
    self._folder.mkdir(parents=True)
    with beam.Pipeline(options=PipelineOptions(self._options)) as pipeline:
      _ = (
        pipeline
        | 'Tasks' >> beam.Create(numbered)
        | 'Spread' >> beam.Reshuffle()
        | 'Run' >> beam.Map(_run, function, self._folder)
      )
    for number, _ in numbered:
      result = pickle.loads((self._folder / f'{number:06d}').read_bytes())
      if isinstance(result, Exception):
        raise result
      yield result


def run(dataset: Dataset, args, options: list[str]) -> int:
  """Builds the data set; returns the exit code. Raises UserError for a user's mistake."""
  out = args.out.absolute()
  if dataset.raw_files is not None:
    for path in dataset.raw_files(args.raw.absolute(), dataset.options(args)):
      if is_zipped(path):
        raise UserError(f'--raw={path}: Beam reads parts of a file, not of a gzip; unzip it first')
  return build.build(dataset, args, BeamWorkers(options, out.with_name(f'{out.name}.beam')))


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns the exit code."""
  dataset, args, options = build.parse_flags(sys.argv[1:] if argv is None else argv, others=True)
  return guarded(lambda: run(dataset, args, options))


if __name__ == '__main__':
  sys.exit(main())
