# SPDX-License-Identifier: Apache-2.0
"""Verifies a prepared folder: checksums, counts, id ranges, leaks between splits.

Imports core and prepared. Knows no data set.
"""
