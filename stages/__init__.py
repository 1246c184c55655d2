"""The science: one file per kind of stage, and the one table of kinds.

Importing this package imports no torch; engines (`stages/engines/`) are imported when a stage runs.
"""

from pipeline.stage import Stage
from stages.curate import Curate
from stages.evaluate import Evaluate
from stages.grpo import GRPO
from stages.pretrain import Pretrain
from stages.rejection_sampling import RejectionSampling
from stages.reward_model import RewardModel
from stages.sft import SFT

STAGES: dict[str, type[Stage]] = {
    cls.kind: cls for cls in (Pretrain, SFT, RejectionSampling, Curate, RewardModel, GRPO, Evaluate)
}
