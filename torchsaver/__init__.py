"""TensorFlow's tf.train.Saver for PyTorch: crash-safe safetensors checkpoints, and a state file to find them."""

from torchsaver.errors import (
    CheckpointKeyError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    MismatchError,
    NoValidCheckpointError,
    SkippedCheckpoint,
    TorchSaverError,
    UnsupportedCheckpointError,
    VarListError,
    VarListTypeError,
)
from torchsaver.inspection.directory import list_checkpoints, verify_directory
from torchsaver.inspection.listing import print_tensors_in_checkpoint_file
from torchsaver.inspection.reports import CheckpointStatus, Damage, DirectoryReport, Progress, VerifyReport
from torchsaver.inspection.verification import verify_checkpoint
from torchsaver.reader import CheckpointReader, list_variables, load_checkpoint, load_variable
from torchsaver.recovery import newest_valid_checkpoint
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
    "CheckpointStatus",
    "Collection",
    "CorruptCheckpointError",
    "Damage",
    "DirectoryReport",
    "MismatchError",
    "NoValidCheckpointError",
    "Progress",
    "RestoreReport",
    "Saver",
    "SkippedCheckpoint",
    "TorchSaverError",
    "UnsupportedCheckpointError",
    "VarListError",
    "VarListTypeError",
    "Variable",
    "VerifyReport",
    "__version__",
    "checkpoint_exists",
    "generate_checkpoint_state_proto",
    "get_checkpoint_mtimes",
    "get_checkpoint_state",
    "latest_checkpoint",
    "list_checkpoints",
    "list_variables",
    "load_checkpoint",
    "load_variable",
    "newest_valid_checkpoint",
    "print_tensors_in_checkpoint_file",
    "remove_checkpoint",
    "track",
    "update_checkpoint_state",
    "verify_checkpoint",
    "verify_directory",
]
