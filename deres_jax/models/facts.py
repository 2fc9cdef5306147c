# SPDX-License-Identifier: Apache-2.0
"""Facts that every registered model states; `make docs` writes docs/models.md from them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Facts:
  """Reference, equation and size of a model.

  Attributes:
    paper: arXiv number, or authors and year, or '' if there is no paper.
    rule: equation, in the notation of docs/models.md.
    ours: choices that the paper leaves open, '' if there are none.
    parameters: number of dense parameters, a Python expression in the symbols that docs/models.md
      lists under "Formulas". Of a token backbone for one layer, of a connector for all sites.
    flops: forward FLOPs, likewise. Of a connector for one token.
  """

  paper: str
  rule: str
  ours: str
  parameters: str
  flops: str
