# SPDX-License-Identifier: Apache-2.0
"""The story of a sandbox, told from its records alone.

Nothing here can act: only the journal and the pure machines are imported, so a replay can be asked for at any time, of a
live journal or of a copy of one. `reading` opens journals, `subject` finds the stream that is meant, `story` folds its
records into rows, `verdict` and `why` say how it ended and because of what, `text` and `jsonout` print.
"""
