"""The page to explore: inputs, layers that spike over time, and the answer, in a browser (docs/view.md).

    view({"sorted": one, "weighted": other}, images)

``scene``  what is shown, as tensors: trains, and the answer after every step; no page
``page``   the page: widgets and figures of Bokeh
``serve``  the server: 127.0.0.1 only, a random token in the address, everything else refused
"""

from __future__ import annotations

from parspike.view.serve import view

__all__ = ["view"]
