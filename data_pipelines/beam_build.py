# SPDX-License-Identifier: Apache-2.0
"""The builds of `data_pipelines.build`, with their tasks run by Apache Beam.

  pip install -e '.[beam]'
  python -m data_pipelines.beam_build --dataset=criteo --raw=train.txt --out=DIR --runner=NAME ...

Every phase of a build is a list of tasks, pure functions from files to files; here each list is
one Beam pipeline, so the bytes are those of a local build. Flags that `build` does not know are
Beam's pipeline options. --raw and --out must be on storage that all of Beam's workers see under
the same path (a shared or mounted file system), and this package must be installed there: on
Dataflow, Flink and Spark by --setup_file, --sdk_container_image or --environment_type of theirs.
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
from data_pipelines.core.errors import UserError
from data_pipelines.core.files import is_zipped
from data_pipelines.prepared.dataset import Dataset


def _run(numbered: tuple[int, Any], function: Callable[[Any], Any], folder: Path) -> None:
  """One task; its result, or the fault that the user can mend, goes to a file of its own."""
  number, task = numbered
  try:
    result = function(task)
  except (UserError, OSError) as error:
    result = error
  path = folder / f'{number:06d}'
  temporary = path.with_name(f'{path.name}.tmp')
  temporary.write_bytes(pickle.dumps(result))
  temporary.replace(path)


class BeamWorkers:
  """Has the `map` of workers.Workers; a call is a pipeline, run to its end."""

  def __init__(self, options: list[str], folder: Path):
    """Args: Beam's flags, and a folder for results that all workers see (removed in the end)."""
    self._options, self._folder = options, folder

  def __enter__(self) -> 'BeamWorkers':
    return self

  def __exit__(self, kind, error, trace) -> None:
    shutil.rmtree(self._folder, ignore_errors=True)

  def map(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
    """function(task) for each task, in order. Raises the first fault of a task."""
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
  """Builds the data set; returns the exit code.

  Raises:
    UserError: a mistake that the user can mend.
  """
  out = args.out.absolute()
  if args.raw is not None:
    for path in dataset.raw_files(args.raw.absolute(), dataset.options(args)):
      if is_zipped(path):
        raise UserError(f'--raw={path}: Beam reads parts of a file, not of a gzip; unzip it first')
  return build.build(dataset, args, BeamWorkers(options, out.with_name(f'{out.name}.beam')))


def main(argv: list[str] | None = None) -> int:
  """The command; returns the exit code."""
  dataset, args, options = build.parse_flags(sys.argv[1:] if argv is None else argv, others=True)
  return guarded(lambda: run(dataset, args, options))


if __name__ == '__main__':
  sys.exit(main())
