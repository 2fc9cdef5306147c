# SPDX-License-Identifier: Apache-2.0
"""Behaviour sequences of a video platform (KuaiRand): logs and side tables to encoded rows.

Provenance: KuaiRand-Pure, -1K or -27K (Zenodo record 10439422, https://kuairand.com), logs of
Kuaishou of 2022-04-08 to 2022-05-08; 27K has 322 million impressions of 27,285 users. Licence
CC BY-SA 4.0. Citation: Gao et al., KuaiRand: An Unbiased Sequential Recommendation Dataset with
Randomly Exposed Videos, CIKM '22, doi 10.1145/3511808.3557624 (BibTeX: `KuaiRand.CITATION`).

The data set is called `social`. It stands in for the private behaviour logs of the DeRes paper; the
protocol is ours.

Rows: one per impression of log_standard_*.csv, and with --random_log of log_random_*.csv too. The
label is is_click, long_view or is_like. Fields: `fields.FIELDS`, none of which is feedback of the
row itself; a value that a side table does not have is missing (id 1), and so is a token of fewer
than --min_count training rows. hour and weekday are those of UTC+8; `duration` is in half octaves;
of a list of tags the first counts.

Sequence: the last --events impressions of the same user that have positive feedback (click, like,
follow, comment, forward or long view) and a time_ms strictly below the row's own; rows of the same
millisecond do not see each other. Oldest first, padded with 0 at the front. Attributes: video_id,
author_id and tag, whose ids are those of the fields; `feedback`, which of the six the user gave;
and `gap`, the octave of the whole seconds from the event to the row (a token is its lower edge).

Split: 8:1:1 in the order of time, cut at a millisecond, as near to 80 % and 90 % as ties allow;
each split is shuffled with --seed. As is usual with a split by time, histories of later rows hold
events of earlier splits, and of their own. Rows are numbered, before they are shuffled, by
(user_id * 0x9E3779B97F4A7C15 modulo 2^64, time_ms, order in the raw files), and groups are the
users in that order.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from data_pipelines.core.option_flags import check
from data_pipelines.datasets.kuairand import fields
from data_pipelines.datasets.kuairand.files import kuairand_files
from data_pipelines.datasets.kuairand.histories import group_by_user
from data_pipelines.datasets.kuairand.logs import LABELS, log_protocol
from data_pipelines.datasets.kuairand.side_tables import SideTable, build_side, text_tokens
from data_pipelines.datasets.kuairand.split import split_by_time
from data_pipelines.prepared.dataset import BuildContext, Dataset, Encoded
from data_pipelines.prepared.tfds import BlockBuilder
from data_pipelines.text import encoding
from data_pipelines.text.dataset import add_shared_flags, check_shared_options
from data_pipelines.text.ingest import ingest
from deres_jax.core.errors import UserError

EVENTS, MAX_EVENTS = 50, 10_000
MIN_COUNT = 2
_PARTS = 10  # 8:1:1


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `--dataset=social`."""
  parser.add_argument(
    '--protocol', choices=('time',), default='time', help='time: 8:1:1 by time (default)'
  )
  parser.add_argument(
    '--label', choices=LABELS, default=LABELS[0], help=f'what is predicted (default {LABELS[0]})'
  )
  parser.add_argument(
    '--events',
    type=int,
    default=EVENTS,
    help=f'events of a behaviour sequence, at most (default {EVENTS})',
  )
  parser.add_argument(
    '--random_log',
    action='store_true',
    help='use log_random_*.csv, too (default: the standard logs only)',
  )
  min_count_help = f'a token needs to be kept (default {MIN_COUNT})'
  add_shared_flags(parser, MIN_COUNT, min_count_help, 'shuffle', 'each log')


def options(args: argparse.Namespace) -> dict:
  """See Dataset.options."""
  check_shared_options(args.seed, args.min_count, args.limit, least_lines=2)
  check(1 <= args.events <= MAX_EVENTS, 'events', args.events, f'1 to {MAX_EVENTS}')
  names = ('protocol', 'label', 'events', 'random_log', 'min_count', 'seed', 'limit')
  return {name: vars(args)[name] for name in names}


def raw_files(raw: Path, options: dict) -> list[Path]:
  """See Dataset.raw_files: the logs, then the tables of users and of videos."""
  return kuairand_files(raw, options['random_log'])


def encode(options: dict, files: list[Path], context: BuildContext) -> Encoded:
  """See Dataset.encode."""
  *log_files, users_file, videos_file = files
  folder = context.work / 'side'
  folder.mkdir(exist_ok=True)
  f = fields
  users = SideTable(users_file, 'user_id', f.USER_INTEGERS, f.USER_TEXTS, folder / 'users')
  videos = SideTable(videos_file, 'video_id', f.VIDEO_INTEGERS, f.VIDEO_TEXTS, folder / 'videos')
  side_files = tuple(context.workers.map(build_side, [users, videos]))
  logs = ingest(log_protocol(options['label']), log_files, options['limit'], context)
  raw = log_files[0].parent
  if logs.total < _PARTS:
    raise UserError(
      f'--raw={raw}: only {logs.total} valid rows; expected at least {_PARTS} for a split'
    )
  by_user = group_by_user(logs, options['events'], users, videos, context)
  if not by_user.events:
    raise UserError(
      f'--raw={raw}: no row has positive feedback, so every behaviour sequence would be empty; '
      'give logs as they were published'
    )

  def split_rows(rows: int) -> dict[str, np.ndarray]:
    return split_by_time(by_user.times, rows, options['seed'], raw)

  texts = text_tokens(users) | text_tokens(videos)
  protocol = fields.row_protocol(options['label'], options['events'], texts)
  encoded = encoding.encode(protocol, by_user.ingested, split_rows, options['min_count'], context)
  return dataclasses.replace(encoded, raw_files=(*encoded.raw_files, *side_files))


class KuaiRand(BlockBuilder):
  """KuaiRand impressions with behaviour sequences, encoded to ids, in blocks of rows."""

  name = 'social'
  DESCRIPTION = (
    'A month of impressions of the video platform Kuaishou: who was shown which video when, six '
    'kinds of positive feedback, and features of users and videos. Every row carries the last '
    'videos that its user responded to before it. Split by time.'
  )
  HOMEPAGE = 'https://kuairand.com'
  LICENCE = 'CC BY-SA 4.0; attribution: Gao et al., KuaiRand'
  CITATION = """@inproceedings{gao2022kuairand,
  title = {KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos},
  author = {Gao, Chongming and Li, Shijun and Zhang, Yuan and Chen, Jiawei and Li, Biao and
    Lei, Wenqiang and Jiang, Peng and He, Xiangnan},
  booktitle = {Proceedings of the 31st ACM International Conference on Information and Knowledge
    Management},
  series = {CIKM '22},
  pages = {3953--3957},
  year = {2022},
  doi = {10.1145/3511808.3557624}
}"""


KUAIRAND = Dataset(
  name='social',
  about='behaviour sequences (a KuaiRand folder of logs, user and video features, plain or .gz)',
  add_flags=add_flags,
  options=options,
  encode=encode,
  builder=KuaiRand,
  raw_files=raw_files,
)
