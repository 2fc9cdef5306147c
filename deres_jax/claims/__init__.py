# SPDX-License-Identifier: Apache-2.0
"""The DeRes paper's claims beside what sweeps show of them.

The only room that knows the paper's numbers. Imports scaling and the rooms below.
"""
