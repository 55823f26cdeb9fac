"""LoRA ensembles: several low-rank adapters on one frozen backbone, trained exactly, once, and compared
fairly.

Importing `lorae` or its specs loads neither torch nor ray. Axes of arrays are named by suffix, members first:
M members, N examples, B batch, T tokens, D hidden (inputs of a layer), E outputs of a layer, R rank,
C classes, V vocabulary: `logits_MNC`, `A_MRD`.
"""

__version__ = "0.1.0"
# Enters every member_id: raise it when the meaning of a recipe or the training procedure changes
SCHEMA_VERSION = 1
