# SPDX-License-Identifier: Apache-2.0
"""Laws of AUC against compute: the forms, least squares, intervals, power.

Pure NumPy and SciPy. Imports core only.
"""
