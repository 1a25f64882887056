"""A person-net as one `.safetensors` file, in the way of `cpm_core.weights`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cpm_core.header import file_sha256
from cpm_core.person_net.info import KIND, VERSION, PersonNetInfo, find_person_net, parse_info
from cpm_core.person_net.net import PersonNet
from cpm_core.tensor_file import read_tensors, write_tensors


@dataclass(frozen=True)
class PersonNetWeights:
    """What a file holds; `sha256` of the file is the locator's identity."""

    info: PersonNetInfo
    tensors: dict[str, Tensor]
    sha256: str

    def model(self) -> PersonNet:
        """The network with these weights, in fp32 and eval mode."""
        model = PersonNet(self.info.config)
        model.load_state_dict({name: tensor.float() for name, tensor in self.tensors.items()})
        return model.eval()


def save_person_net(path: str | Path, model: PersonNet, info: PersonNetInfo) -> None:
    """Write weights as fp16 with metadata. Raises WeightsError for values that fp16 cannot hold."""
    metadata = {"version": VERSION, "kind": KIND, **dataclasses.asdict(info)}
    write_tensors(path, model, metadata)


def load_person_net(name_or_path: str | Path = KIND) -> PersonNetWeights:
    """Read and check the shipped weights or a user's file. Raises WeightsError naming the file."""
    path = find_person_net(name_or_path)
    info, tensors = read_tensors(path, parse_info, lambda info: PersonNet(info.config))
    return PersonNetWeights(info, tensors, file_sha256(path))
