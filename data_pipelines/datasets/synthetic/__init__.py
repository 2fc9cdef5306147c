# SPDX-License-Identifier: Apache-2.0
"""Planted data: rows of a known teacher, with their Bayes AUC."""
