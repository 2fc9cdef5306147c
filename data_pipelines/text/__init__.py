# SPDX-License-Identifier: Apache-2.0
"""Raw text tables to encoded rows: chunks, parser, row checks, encoding, splits.

Imports core and prepared. Knows no data set.
"""
