"""Opening a safetensors file, of ours or anyone's; the header's rules are next door."""

from __future__ import annotations

from collections.abc import Iterable

from torchsaver.errors import CorruptCheckpointError
from torchsaver.formats import safetensors_header as header
from torchsaver.formats.file_layout import FileLayout
from torchsaver.formats.manifest import MANIFEST_KEY, Manifest, is_unnamed, parse_manifest
from torchsaver.formats.tensor_file import TensorFile


class SafetensorsFile(TensorFile):
    """An open safetensors file: its header is checked, its data is read by position.

    Args:
        path: The file.
        known: Layouts it may have again; see `parse_header`.

    Attributes:
        layout: Where its tensors are, in the order of the file.
        manifest: What it says of itself; an empty one for a third party's file.
        header_crc32c: The manifest's header checksum; None for a third party's file.

    Raises:
        CorruptCheckpointError: Not a file, not of the format, or its header checksum differs.
        UnsupportedCheckpointError: A dtype or format version this version does not know.
        OSError: As the system gave it.
    """

    def __init__(self, path: str, known: Iterable[FileLayout] = ()) -> None:
        super().__init__(path)
        try:
            self._read_header(known)
        except BaseException:
            self.close()
            raise

    def _read_header(self, known: Iterable[FileLayout]) -> None:
        file = self._file
        length = header.parse_length(file.read(0, min(header.LENGTH_BYTES, file.nbytes)), file.nbytes, self.path)
        self._data_start = header.LENGTH_BYTES + length
        head = file.read(header.LENGTH_BYTES, length)
        self.layout, strings = header.parse_header(head, file.nbytes - self._data_start, self.path, known)
        del head  # up to MAX_HEADER_BYTES, and the manifest takes memory of its own
        specs = self.specs = self.layout.specs
        self.header_crc32c: int | None = None
        if MANIFEST_KEY in strings:
            text = strings.pop(MANIFEST_KEY)
            self.manifest, self.header_crc32c = parse_manifest(text, self.layout.content, specs.keys(), self.path)
        elif any(is_unnamed(text) for text in strings.values()):
            raise CorruptCheckpointError(self.path, header.LENGTH_BYTES, "the manifest has lost its name")
        else:
            # safetensors.torch.save_model notes the names it drops for tied tensors as {dropped: kept}.
            aliases = {name: kept for name, kept in strings.items() if name not in specs and kept in specs}
            aliases.pop("format", None)  # "pt", even beside a tensor of that name
            self.manifest = Manifest(aliases=aliases)
        self.has_checksums = self.header_crc32c is not None
