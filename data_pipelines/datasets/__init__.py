# SPDX-License-Identifier: Apache-2.0
"""The data sets that can be built.

DATASETS maps the names of `--dataset=NAME` to Dataset values. The docstring of each one's module
says where the data come from and how rows become ids. Imports core, prepared and text.
"""

from data_pipelines.datasets.avazu import AVAZU
from data_pipelines.datasets.criteo import CRITEO
from data_pipelines.datasets.criteo_1tb import CRITEO_1TB
from data_pipelines.datasets.kuairand.dataset import KUAIRAND
from data_pipelines.datasets.synthetic.dataset import SYNTHETIC
from data_pipelines.datasets.synthetic_feed.dataset import SYNTHETIC_FEED

DATASETS = {
  'criteo': CRITEO,
  'synthetic': SYNTHETIC,
  'synthetic_social': SYNTHETIC_FEED,
  'avazu': AVAZU,
  'criteo_1tb': CRITEO_1TB,
  'social': KUAIRAND,
}
