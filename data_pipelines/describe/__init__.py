# SPDX-License-Identifier: Apache-2.0
"""Describes a prepared folder: counts, a table in the terminal, a page with charts.

Imports core and prepared. Knows no data set.
"""
