"""What the page shows before anybody has done anything, as the values that its components begin with."""

from gradio.blocks import Block
from gradio.components import Component, State
from gradio.processing_utils import move_files_to_cache
from pydantic import BaseModel

from attribution.ui.handlers import Update


def begin_with(update: Update) -> None:
    """Let components begin with what a handler would change them to, so that no visitor waits for it.

    Gradio makes a visitor's components anew from their arguments when they change, also when a handler changes nothing:
    the arguments are those of the beginning too, or a choice that the page shows would be refused.

    Args:
        update: what a handler gives; made outside of the page's layout, which would take its components in.
    """
    for component, change in update.items():
        if isinstance(change, Block):
            for name in change.constructor_args:
                setattr(component, name, getattr(change, name))
            component.constructor_args.update(change.constructor_args)
        else:
            component.value = change if isinstance(component, State) else as_sent(component, change)


def as_sent(component: Component, value: object) -> object:
    """A value as the page's configuration has it; files of it are never deleted, as those of visitors are."""
    told = component.postprocess(value)  # type: ignore[no-untyped-call]
    if isinstance(told, BaseModel):
        told = told.model_dump()
    sent = move_files_to_cache(told, component, postprocess=True, keep_in_cache=True)
    if isinstance(sent, dict) and isinstance(image := sent.get("image"), dict):
        component.keep_in_cache.add(image["path"])
    return sent
