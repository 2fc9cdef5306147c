# SPDX-License-Identifier: Apache-2.0
"""TFDS description of the planted social feed."""

from data_pipelines.tfds_blocks import BlockBuilder


class SyntheticSocial(BlockBuilder):
  """Generated feed of users with histories and a known logit, in blocks of rows."""

  RELEASE_NOTES = {'1.0.0': 'First version.'}  # noqa: RUF012 (TFDS's own attribute)
  DESCRIPTION = (
    'Generated impressions of a social feed: users with several interests at the same time, items '
    'with author and tag, and the history of what a user clicked, how he reacted and how long ago. '
    'Clicks are drawn from a planted logit of what the row shows. The true click probabilities are '
    'known, and with them the best reachable AUC and log loss.'
  )
  HOMEPAGE = ''
  LICENCE = 'Apache-2.0'
  CITATION = ''
