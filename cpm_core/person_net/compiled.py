"""The person-net, compiled, for a process without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from cpm_core.compiled import CompiledNetwork, Graph
from cpm_core.looks import Found, NetElsewhere
from cpm_core.people import Picture
from cpm_core.person_net.peaks import peaks


@dataclass(frozen=True)
class CompiledPersonNet:
    """What travels: the graph, for inputs of `size` pixels."""

    graph: Graph
    size: int

    @classmethod
    def shipped(cls) -> CompiledPersonNet:
        """The one of the package, which takes PyTorch and OpenVINO."""
        from cpm_core.person_net.weights import load_person_net
        from cpm_core.translate import graph_of

        net = load_person_net()
        return cls(graph_of(net), net.info.config.input_size)

    def locator(self, threshold: float, threads: int) -> NetElsewhere:
        """A locator that answers as `PersonNetLocator` on a CPU."""
        network = CompiledNetwork(self.graph.models(), bf16=False, threads=threads)

        def find(image: Picture) -> Found:
            (maps,) = network(image[None])
            return peaks(maps, threshold)[0]

        return NetElsewhere(self.size, find)
