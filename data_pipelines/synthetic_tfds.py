# SPDX-License-Identifier: Apache-2.0
"""TFDS description of the planted data."""

from data_pipelines.tfds_blocks import BlockBuilder


class SyntheticCtr(BlockBuilder):
  """Generated click data with a known logit, in blocks of rows."""

  RELEASE_NOTES = {'1.0.0': 'First version.'}  # noqa: RUF012 (TFDS's own attribute)
  DESCRIPTION = (
    'Generated categorical rows with Zipf-distributed values and clicks drawn from a planted '
    'logit of main effects and interactions of order 2 to 4. The true click probabilities are '
    'known, and with them the best reachable AUC and log loss.'
  )
  HOMEPAGE = ''
  LICENCE = 'Apache-2.0'
  CITATION = ''
