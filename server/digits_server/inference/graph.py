"""One ONNX file in onnxruntime. The only module that knows onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at import; a service has nothing to tell its vendor

import onnxruntime as ort

from digits_server.errors import ModelRefused


class Graph:
    """An ONNX file as onnxruntime runs it. Nothing of the files is needed, or mapped into memory, once it is loaded.

    Args:
        path: The .onnx file; weights that it keeps in a file of their own are in `<path>.data`.
        threads: Threads that one run may use.

    Raises:
        ModelRefused: The file can't be loaded.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Plans of memory for each size of batch, and an arena that never shrinks, cost 40 MB and save 1 us a run.
        options.enable_mem_pattern = options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads must not burn a CPU
        options.log_severity_level = 4  # faults are raised; a second copy on stderr would not be JSON
        weights = path.with_name(f"{path.name}.data")
        try:
            if weights.exists():
                data = weights.read_bytes()
                options.add_external_initializers_from_files_in_memory([weights.name], [data], [len(data)])
            # From bytes: a file that is written over while its model serves must change no answer.
            self._session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no common base class for its errors
            reason = str(error)
            if "External" in reason:  # data path, or file
                reason = (
                    f"it keeps its weights in a file of their own, for which {weights.name} is allowed; "
                    f"{'it names another one' if weights.exists() else 'that is missing'}"
                )
            raise ModelRefused(f"{path.name} can't be loaded: {reason}") from error
        self.threads = threads
        self.metadata: Mapping[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        """What the file says about itself."""
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._input = self._session.get_inputs()[0].name if self._session.get_inputs() else ""

    def __call__(self, rows: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Run on n rows and return the outputs."""
        outputs: list[npt.NDArray[Any]] = self._session.run(self._outputs, {self._input: rows})
        return outputs

    def check(self, element: str, length: int, *, ranks: Sequence[Sequence[int]], types: str, outputs: str) -> None:
        """Check what the graph takes and gives.

        Args:
            element: Type of the input's elements, as ONNX calls it.
            length: Numbers in a row; the input is (any number, length) of them.
            ranks: Allowed numbers of dimensions of the outputs.
            types: Types of the outputs' elements that are allowed.
            outputs: What outputs are allowed, in words.

        Raises:
            ModelRefused: It takes or gives something else.
        """
        given, made = self._session.get_inputs(), self._session.get_outputs()
        faults = []
        shapes = [(i.type, len(i.shape), i.shape[1:], isinstance(i.shape[0], int)) for i in given if i.shape]
        if shapes != [(f"tensor({element})", 2, [length], False)]:
            found = [(i.name, i.type, i.shape) for i in given]
            faults.append(f"inputs are {found}; allowed is one {element} (batch, {length})")
        if [len(o.shape) for o in made] not in ranks or any(o.type not in types for o in made):
            faults.append(f"outputs are {[(o.name, o.type, o.shape) for o in made]}; allowed are {outputs}")
        if faults:
            raise ModelRefused("; ".join(faults))
