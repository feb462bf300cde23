"""TensorFlow's tf.train.Saver for PyTorch: crash-safe safetensors checkpoints, and a state file to find them."""

from torchsaver.errors import (
    CheckpointKeyError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    MismatchError,
    TorchSaverError,
    UnsupportedCheckpointError,
    VarListError,
    VarListTypeError,
)
from torchsaver.inspection import print_tensors_in_checkpoint_file
from torchsaver.reader import CheckpointReader, list_variables, load_checkpoint, load_variable
from torchsaver.saver import Saver
from torchsaver.storage.checkpoint_files import checkpoint_exists, get_checkpoint_mtimes, remove_checkpoint
from torchsaver.storage.state_file import (
    CheckpointState,
    generate_checkpoint_state_proto,
    get_checkpoint_state,
    latest_checkpoint,
    update_checkpoint_state,
)
from torchsaver.variables.collection import Collection, Variable, track
from torchsaver.variables.restore_plan import RestoreReport
from torchsaver.version import __version__

__all__ = [
    "CheckpointKeyError",
    "CheckpointNotFoundError",
    "CheckpointReader",
    "CheckpointState",
    "Collection",
    "CorruptCheckpointError",
    "MismatchError",
    "RestoreReport",
    "Saver",
    "TorchSaverError",
    "UnsupportedCheckpointError",
    "VarListError",
    "VarListTypeError",
    "Variable",
    "__version__",
    "checkpoint_exists",
    "generate_checkpoint_state_proto",
    "get_checkpoint_mtimes",
    "get_checkpoint_state",
    "latest_checkpoint",
    "list_variables",
    "load_checkpoint",
    "load_variable",
    "print_tensors_in_checkpoint_file",
    "remove_checkpoint",
    "track",
    "update_checkpoint_state",
]
