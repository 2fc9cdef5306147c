# SPDX-License-Identifier: Apache-2.0
"""Figures of predictions: AUC, log loss, calibration, paired tests and verdicts.

Pure NumPy and SciPy (streaming states: JAX). Imports no other room and knows no model or file.
"""
