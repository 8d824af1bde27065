# SPDX-License-Identifier: Apache-2.0
"""The command line. One small module per verb; nothing is imported before it is needed."""
