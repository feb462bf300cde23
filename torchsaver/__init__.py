"""TensorFlow's tf.train.Saver for PyTorch: crash-safe safetensors checkpoints, and a state file to find them."""

import importlib
import sys
import typing

from torchsaver.version import __version__

if typing.TYPE_CHECKING:
    from torchsaver import transfer
    from torchsaver.conversion.convert import convert_checkpoint
    from torchsaver.errors import (
        CheckpointKeyError,
        CheckpointNotFoundError,
        ConversionError,
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
    from torchsaver.loop.checkpoint_waiting import checkpoints_iterator
    from torchsaver.loop.saver_hook import CheckpointSaverHook, CheckpointSaverListener
    from torchsaver.loop.training_steps import TrainingSteps, training_steps
    from torchsaver.manager import CheckpointManager
    from torchsaver.pruning import prune_checkpoints
    from torchsaver.reader import CheckpointReader, list_variables, load_checkpoint, load_variable
    from torchsaver.recovery import newest_valid_checkpoint
    from torchsaver.retention.policies import Best, EveryNHours, EveryNSteps, Latest, Pinned
    from torchsaver.retention.window import Decision, Policy
    from torchsaver.saver import Saver
    from torchsaver.saving.writer import SavedCheckpoint
    from torchsaver.storage.checkpoint_files import checkpoint_exists, get_checkpoint_mtimes, remove_checkpoint
    from torchsaver.storage.state_file import (
        CheckpointState,
        generate_checkpoint_state_proto,
        get_checkpoint_state,
        latest_checkpoint,
        update_checkpoint_state,
    )
    from torchsaver.tf_optimizers import restore_optimizer, tf_epsilon, variables_to_restore
    from torchsaver.tf_saving import save_tf_checkpoint
    from torchsaver.transfer import init_from_checkpoint
    from torchsaver.variables.collection import Collection, Variable, track
    from torchsaver.variables.counter import Counter
    from torchsaver.variables.restore_plan import RestoreReport
    from torchsaver.variables.rng import RNGState
    from torchsaver.variables.swapped import swapped
    from torchsaver.warm_starting import VocabInfo, warm_start

__all__ = [
    "Best",
    "CheckpointKeyError",
    "CheckpointManager",
    "CheckpointNotFoundError",
    "CheckpointReader",
    "CheckpointSaverHook",
    "CheckpointSaverListener",
    "CheckpointState",
    "CheckpointStatus",
    "Collection",
    "ConversionError",
    "CorruptCheckpointError",
    "Counter",
    "Damage",
    "Decision",
    "DirectoryReport",
    "EveryNHours",
    "EveryNSteps",
    "Latest",
    "MismatchError",
    "NoValidCheckpointError",
    "Pinned",
    "Policy",
    "Progress",
    "RNGState",
    "RestoreReport",
    "SavedCheckpoint",
    "Saver",
    "SkippedCheckpoint",
    "TorchSaverError",
    "TrainingSteps",
    "UnsupportedCheckpointError",
    "VarListError",
    "VarListTypeError",
    "Variable",
    "VerifyReport",
    "VocabInfo",
    "__version__",
    "checkpoint_exists",
    "checkpoints_iterator",
    "convert_checkpoint",
    "generate_checkpoint_state_proto",
    "get_checkpoint_mtimes",
    "get_checkpoint_state",
    "init_from_checkpoint",
    "latest_checkpoint",
    "list_checkpoints",
    "list_variables",
    "load_checkpoint",
    "load_variable",
    "newest_valid_checkpoint",
    "print_tensors_in_checkpoint_file",
    "prune_checkpoints",
    "remove_checkpoint",
    "restore_optimizer",
    "save_tf_checkpoint",
    "swapped",
    "tf_epsilon",
    "track",
    "training_steps",
    "transfer",
    "update_checkpoint_state",
    "variables_to_restore",
    "verify_checkpoint",
    "verify_directory",
    "warm_start",
]

# Where each name is. Its module is imported when the name is first asked for (PEP 562), and torch with it if need be;
# so that the command line can do without torch.
_MODULES = {
    "Best": "retention.policies",
    "CheckpointKeyError": "errors",
    "CheckpointManager": "manager",
    "CheckpointNotFoundError": "errors",
    "CheckpointReader": "reader",
    "CheckpointSaverHook": "loop.saver_hook",
    "CheckpointSaverListener": "loop.saver_hook",
    "CheckpointState": "storage.state_file",
    "CheckpointStatus": "inspection.reports",
    "Collection": "variables.collection",
    "ConversionError": "errors",
    "CorruptCheckpointError": "errors",
    "Counter": "variables.counter",
    "Damage": "inspection.reports",
    "Decision": "retention.window",
    "DirectoryReport": "inspection.reports",
    "EveryNHours": "retention.policies",
    "EveryNSteps": "retention.policies",
    "Latest": "retention.policies",
    "MismatchError": "errors",
    "NoValidCheckpointError": "errors",
    "Pinned": "retention.policies",
    "Policy": "retention.window",
    "Progress": "inspection.reports",
    "RNGState": "variables.rng",
    "RestoreReport": "variables.restore_plan",
    "SavedCheckpoint": "saving.writer",
    "Saver": "saver",
    "SkippedCheckpoint": "errors",
    "TorchSaverError": "errors",
    "TrainingSteps": "loop.training_steps",
    "UnsupportedCheckpointError": "errors",
    "VarListError": "errors",
    "VarListTypeError": "errors",
    "Variable": "variables.collection",
    "VerifyReport": "inspection.reports",
    "VocabInfo": "warm_starting",
    "checkpoint_exists": "storage.checkpoint_files",
    "checkpoints_iterator": "loop.checkpoint_waiting",
    "convert_checkpoint": "conversion.convert",
    "generate_checkpoint_state_proto": "storage.state_file",
    "get_checkpoint_mtimes": "storage.checkpoint_files",
    "get_checkpoint_state": "storage.state_file",
    "init_from_checkpoint": "transfer",
    "latest_checkpoint": "storage.state_file",
    "list_checkpoints": "inspection.directory",
    "list_variables": "reader",
    "load_checkpoint": "reader",
    "load_variable": "reader",
    "newest_valid_checkpoint": "recovery",
    "print_tensors_in_checkpoint_file": "inspection.listing",
    "prune_checkpoints": "pruning",
    "remove_checkpoint": "storage.checkpoint_files",
    "restore_optimizer": "tf_optimizers",
    "save_tf_checkpoint": "tf_saving",
    "swapped": "variables.swapped",
    "tf_epsilon": "tf_optimizers",
    "track": "variables.collection",
    "training_steps": "loop.training_steps",
    "update_checkpoint_state": "storage.state_file",
    "variables_to_restore": "tf_optimizers",
    "verify_checkpoint": "inspection.verification",
    "verify_directory": "inspection.directory",
    "warm_start": "warm_starting",
}


if not typing.TYPE_CHECKING:  # or a type checker would believe that any name is here

    def __getattr__(name: str) -> object:
        """Return a public name from its module, and keep it, so that it is asked for once."""
        if name == "transfer":
            return importlib.import_module(f"{__name__}.transfer")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
        value = globals()[name] = getattr(module, name)
        return value

    # Where torch is there already, a saver is what is wanted; and no save or restore must have to load a module in its
    # midst, from a disk that may fail by then.
    if "torch" in sys.modules:
        for _name in ("Saver", "load_checkpoint", "newest_valid_checkpoint", "remove_checkpoint"):
            __getattr__(_name)


def __dir__() -> list[str]:
    return __all__.copy()
