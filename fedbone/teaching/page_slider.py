"""A slider that turns pages of ready pictures, for those who have a running notebook; others see them side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from fedbone.errors import UserError

IN_TEXT = "The slider is shown while a notebook runs; the figure below has all of its pictures."


class PageSlider:
    """Base of sliders whose pages are drawn on first sight, and once only; works without a front end.

    description: of the slider; names: one a page; draw: page number -> HTML. Raises UserError without pages.
    """

    def __init__(self, description: str, names: Sequence[str], draw: Callable[[int], str]) -> None:
        if not names:
            raise UserError(f"{description} slider", "there is no page to show", "Give it at least one")
        self._description, self._names = description, tuple(names)
        self._page_of = lru_cache(maxsize=None)(draw)  # moving back and forth draws nothing again
        self._widget = None

    @property
    def widget(self):
        """The page under a slider that steps through them, as an ipywidgets container."""
        if self._widget is None:
            import ipywidgets

            choices = [(name, index) for index, name in enumerate(self._names)]
            page = ipywidgets.HTML(self._page_of(0))
            slider = ipywidgets.SelectionSlider(options=choices, value=0, description=self._description)
            slider.observe(lambda change: setattr(page, "value", self._page_of(change["new"])), "value")
            self._widget = ipywidgets.VBox([slider, page])
        return self._widget

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        return {**self.widget._repr_mimebundle_(), "text/plain": IN_TEXT}
