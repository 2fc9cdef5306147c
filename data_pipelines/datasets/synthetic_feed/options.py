# SPDX-License-Identifier: Apache-2.0
"""Options of the planted feed: a frozen dataclass, one command-line flag per field."""

import dataclasses

from data_pipelines.core.option_flags import Options, flag

PARTS = ('main', 'tag', 'author', 'recent')  # of the logit
MAX_USERS = (1 << 31) - 4  # ids are int32


@dataclasses.dataclass(frozen=True)
class FeedOptions(Options):
  """All options that determine the planted feed. `shares` has one entry per part of the logit.

  The defaults make 200,000 training rows; on the test rows the main effects alone reach an AUC of
  0.71, a memory of each user's tags 0.78, and the best model 0.86.
  """

  users: int = flag(6_250, 'number of users')
  impressions: int = flag(40, 'rows of a user: the first 8/10 train, 1/10 validation, rest test')
  warmup: int = flag(40, 'earlier impressions of a user that only fill his history')
  items: int = flag(2_000, 'number of items')
  tags: int = flag(40, 'number of tags; an item has one')
  authors: int = flag(200, 'number of authors; an item has one')
  interests: int = flag(3, 'tags that a user is interested in, all at the same time')
  affinity: float = flag(0.7, 'probability that a candidate comes from an interest; else any item')
  drift: float = flag(
    0.1, 'probability that an interest has given way to another tag since the last'
  )
  events: int = flag(20, 'length of the history in a row')
  zipf: float = flag(0.8, 'exponent a: item v (from 0) has popularity ~ (v + 1)^-a')
  click_rate: float = flag(0.256, 'expected share of clicks, between 0 and 1')
  logit_std: float = flag(2.0, 'standard deviation of the logit; 0 = labels are noise')
  shares: tuple[float, ...] = flag(
    (0.3, 0.4, 0.15, 0.15), "shares of the logit's variance by main,tag,author,recent; sum 1"
  )
  teacher_seed: int = flag(0, 'seed of the teacher (catalogue, effects, calibration)')
  seed: int = flag(0, 'seed of the users and labels; the teacher does not change')

  def steps(self) -> dict[str, tuple[int, int]]:
    """Returns each split's first and last (exclusive) impression of a user; warm-up is before 0."""
    train, validation = self.impressions * 8 // 10, self.impressions // 10
    return {
      'train': (0, train),
      'validation': (train, train + validation),
      'test': (train + validation, self.impressions),
    }

  def rows(self) -> dict[str, int]:
    """Returns the number of rows of each split."""
    return {split: self.users * (stop - start) for split, (start, stop) in self.steps().items()}

  def validate(self) -> None:
    """See Options.validate."""
    tags, authors, most = self.tags, self.authors, 1 << 22
    self.check('users', 1 <= self.users <= MAX_USERS, '1 to 2^31 - 4 users')
    self.check('impressions', 10 <= self.impressions <= 1 << 16, '10 to 65536 rows a user')
    self.check('warmup', 0 <= self.warmup <= 1 << 16, '0 to 65536 impressions')
    self.check('tags', 2 <= tags <= 1 << 20, '2 to 2^20 tags')
    self.check('authors', tags <= authors <= most, f'--tags={tags} to 2^22 authors')
    self.check('items', authors <= self.items <= most, f'--authors={authors} to 2^22 items')
    self.check('interests', 1 <= self.interests <= tags, f'1 to --tags={tags}')
    self.check('affinity', 0 <= self.affinity <= 1, 'a probability between 0 and 1')
    self.check('drift', 0 <= self.drift <= 1, 'a probability between 0 and 1')
    can_drift = self.drift == 0 or self.interests < tags
    self.check('drift', can_drift, '0, or fewer --interests than --tags')
    self.check('events', 1 <= self.events <= 1 << 12, '1 to 4096 events')
    self.check('zipf', 0 <= self.zipf <= 3, '0 to 3')
    self.check('click_rate', 0 < self.click_rate < 1, 'a rate between 0 and 1')
    self.check('logit_std', 0 <= self.logit_std <= 20, '0 to 20')
    self.check_shares('shares', len(PARTS))
    self.check('seed', self.seed >= 0, '0 or more')
    self.check('teacher_seed', self.teacher_seed >= 0, '0 or more')
