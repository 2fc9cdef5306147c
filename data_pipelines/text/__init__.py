# SPDX-License-Identifier: Apache-2.0
"""Raw text tables: chunks, parser, row checks, two passes, encoding, splits.

Imports core and prepared. Knows no data set.
"""
