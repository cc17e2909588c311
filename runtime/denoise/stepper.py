"""The step's graphs, and which of them a run calls: the plain one, the one with residuals of ControlNets, and those of
shallow calls."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Generator as Yielder
from contextlib import closing

import numpy as np

from latentrt.arrays import FloatArray, Shape, Value, to_host
from latentrt.bundle import CONTROLNET, FEATURES, SHALLOW, STEP_CONTROL, Bundle
from latentrt.denoise.batch import Plan
from latentrt.denoise.guidance import Segment
from latentrt.engine import Engine, EngineSet, Link
from latentrt.images.control import Pass, control_links, given_residuals
from latentrt.images.framing import Size
from latentrt.manifest.axes import axis_lengths, tensor_shape

CARRY = {"state": "next_state"}


class Stepper:
    """The graphs of one bundle's step, in the engines that they are loaded into."""

    def __init__(self, bundle: Bundle, engines: EngineSet) -> None:
        self._bundle = bundle
        self._engines = engines

    @property
    def residuals(self) -> list[str]:
        """Inputs of `step-control` for what ControlNets add."""
        return [name for name in self._bundle.component(STEP_CONTROL).dims if name.startswith("residual_")]

    def engine(self, controls: Sequence[str]) -> Engine:
        """The graph for a run with these ControlNets. Those of controls are opened for the first run with one,
        together: on a GPU they share a stream and hand their residuals on where they lie."""
        if not controls:
            return self._engines["step"]
        if any(name not in self._engines for name in (STEP_CONTROL, *(CONTROLNET + name for name in controls))):
            self._open_controls()
        return self._engines[STEP_CONTROL]

    def shallow(self, controls: Sequence[str]) -> Engine:
        """The graph for the shallow calls of such a run."""
        self.engine(controls)
        (shallow,) = self._engines.need(SHALLOW[_step(controls)])
        return shallow

    def check(self, size: Size, context: Shape) -> None:
        """Loads nothing.

        Raises:
            RequestError: no engine is built for a context of this shape, [K, B, L, D], and pictures of this size.
        """
        engine = self._engines["step"]
        engine.check(self._shapes("step", engine.inputs, self._lengths(size, context)))

    def prepare(
        self, size: Size, context: Shape, *, rows: Collection[str], controls: Sequence[str], cached: bool
    ) -> None:
        """Loads and compiles what a run with these ControlNets calls; `rows` are the inputs that change by the call."""
        lengths, name = self._lengths(size, context), _step(controls)
        if cached:
            shallow = self.shallow(controls)
            shallow.prepare(self._shapes(SHALLOW[name], shallow.inputs, lengths), rows=rows, carry=CARRY)
        step = self._alone(controls)
        dims = self._shapes(name, step.inputs, lengths)
        links = []
        for graph in (CONTROLNET + name for name in controls):
            engine = self._engines[graph]
            own = self._shapes(graph, [name for name in engine.inputs if name not in dims], lengths)
            feed = {name: np.zeros(shape, engine.inputs[name].dtype) for name, shape in own.items()}
            links.append(Link(engine=engine, feed=feed, rows={}, gives=given_residuals(engine)))
        step.prepare(dims, rows=rows, carry=CARRY, before=links)

    def call(self, feed: Mapping[str, Value]) -> Mapping[str, Value]:
        """One call of the plain step."""
        step = self._engines["step"]
        return step.run(feed, keep=[name for name in step.outputs if name == FEATURES])

    def call_controlled(self, feed: Mapping[str, Value], passes: Sequence[Pass]) -> Mapping[str, Value]:
        """One call of the step with residuals; those of no ControlNet are 0."""
        self._open_controls()
        height, width = (side * self._bundle.family.vae_factor for side in feed["state"].shape[-2:])
        residuals, links = self._controlling((width, height), feed["context"].shape, passes)
        rows = {"timestep": to_host(feed["timestep"])[None]}
        rest = {name: value for name, value in feed.items() if name not in rows}
        controlled = self._engines[STEP_CONTROL]
        with closing(controlled.sweep({**rest, **residuals}, rows=rows, carry={}, before=links)) as outputs:
            return next(outputs)

    def sweep(
        self, plan: Plan, part: Segment, passes: Sequence[Pass], out: Mapping[str, Value]
    ) -> Yielder[Mapping[str, Value], None, None]:
        """Calls of a run; `out` is what the call before them gave, if there was one."""
        first = _handed_on(out, shallow=part.shallow)
        if part.shallow:
            shallow = self.shallow(plan.controls)
            feed = {name: value for name, value in {**part.feed, **first}.items() if name in shallow.inputs}
            return shallow.sweep(feed, rows=part.rows, carry=CARRY)
        step = self._alone(plan.controls)
        if not plan.controls:
            return step.sweep({**part.feed, **first}, rows=part.rows, carry=CARRY)
        during = [each.during(part.calls, part.branches) for each in passes]
        residuals, links = self._controlling(plan.size, part.feed["context"].shape, during)
        return step.sweep({**part.feed, **residuals, **first}, rows=part.rows, carry=CARRY, before=links)

    def _open_controls(self) -> None:
        self._engines.need(STEP_CONTROL, *(CONTROLNET + name for name in self._bundle.controls))

    def _alone(self, controls: Sequence[str]) -> Engine:
        """`engine`, with the step's other graph out of memory."""
        step = self.engine(controls)
        other = self._engines.get("step" if controls else STEP_CONTROL)
        if other is not None:
            other.unload()
        return step

    def _controlling(
        self, size: Size, context: Shape, passes: Sequence[Pass]
    ) -> tuple[dict[str, FloatArray], list[Link]]:
        """The residuals of zeros that ControlNets begin with, and what each that acts in these calls adds."""
        shapes = self._shapes(STEP_CONTROL, self.residuals, self._lengths(size, context))
        links = control_links([each for each in passes if each.acting.any()], self._engines)
        return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, links

    def _lengths(self, size: Size, context: Shape) -> dict[str, int]:
        """Of the axes of a run whose context has this shape, [K, B, L, D]."""
        branches, batch, length, _ = context
        return axis_lengths(self._bundle.family, size=size, batch=batch, branches=branches, context=length)

    def _shapes(self, component: str, tensors: Iterable[str], lengths: Mapping[str, int]) -> dict[str, Shape]:
        dims = self._bundle.component(component).dims
        return {name: tensor_shape(dims[name], lengths) for name in tensors}


def _step(controls: Sequence[str]) -> str:
    """The component of a run with these ControlNets."""
    return STEP_CONTROL if controls else "step"


def _handed_on(out: Mapping[str, Value], *, shallow: bool) -> dict[str, Value]:
    """What calls take of the call before them: its state, and what a deep one computed for shallow ones."""
    if shallow:
        return {name.removeprefix("next_"): value for name, value in out.items() if name != "denoised"}
    return {"state": out["next_state"]} if out else {}
