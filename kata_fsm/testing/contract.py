# SPDX-License-Identifier: Apache-2.0
"""What `kata_fsm.effects.protocols.Handler` promises, asked of one handler in a world of the caller's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kata_fsm.errors import EffectError

if TYPE_CHECKING:
    from kata_fsm.effects.protocols import Handler, Intent


async def check_handler(handler: Handler, intent: Intent, *, undoes: bool = True) -> None:
    """Perform, probe and undo `intent`, each twice. Raises `AssertionError` for the first promise that is not kept.

    `undoes`: whether undoing takes back what was done (those of effects that release something only repeat them). Leaves
    the effect undone, if it can be.
    """
    await _undo(handler, intent, "what was never done")
    before = await handler.probe(intent)
    assert not (undoes and before.done), "it is seen to be done before it was done"
    await handler.perform(intent)
    after = await handler.probe(intent)
    assert after.done is not False, "it is seen not to be done after it was done"
    try:
        await handler.perform(intent)
    except EffectError:
        pass  # failing cleanly is allowed: a probe comes first
    again = await handler.probe(intent)
    assert again.done == after.done, "repeating it changed what is seen of it"
    await _undo(handler, intent, "what was done")
    await _undo(handler, intent, "what was undone")
    end = await handler.probe(intent)
    assert not (undoes and end.done), "it is seen to be done after it was undone"


async def _undo(handler: Handler, intent: Intent, what: str) -> None:
    try:
        await handler.undo(intent)
    except EffectError as error:
        raise AssertionError(f"undoing {what} failed in phase `{error.phase}`: {error.message}") from error
