# SPDX-License-Identifier: Apache-2.0
"""Pages: the templates, charts and Markdown of every command, and the page of one run.

Imports core. Draws numbers that it is given and computes none. `charts` alone imports matplotlib.
"""
