# SPDX-License-Identifier: Apache-2.0
"""Planted data: rows drawn from a known teacher, whose Bayes AUC is known."""
