# SPDX-License-Identifier: Apache-2.0
"""The state machines of a sandbox: pure, and the only place where legality, order and coupling are written down.

`decide(pod, input)` answers a `Step` of records and intents or raises; `evolve(pod, event)` and `fold(events)` build the
pod that the records describe; `outstanding(pod)` names the effects in flight. Nothing here touches a clock, a file or a
process.
"""

from kata_fsm.machines.decide import decide, events_of
from kata_fsm.machines.intents import outstanding
from kata_fsm.machines.pod import Pod, check, evolve, fold
from kata_fsm.machines.vocab import Cause, Intent, Moved, Step

__all__ = ["Cause", "Intent", "Moved", "Pod", "Step", "check", "decide", "events_of", "evolve", "fold", "outstanding"]
