"""The public names, gathered for `traflow_pipeline`, which imports this module when one of them is first used."""

from eval.config import EvaluateConfig as EvaluateConfig
from eval.results import Report as Report
from pipeline.common.errors import BadInput as BadInput
from pipeline.common.errors import Stopped as Stopped
from pipeline.common.errors import WorkFailed as WorkFailed
from pipeline.dataset.shards import Trajectories as Trajectories
from pipeline.generation.generate import GenerateConfig as GenerateConfig
from pipeline.teachers.teacher import Teacher as Teacher
from traflow_pipeline.loading import load_student as load_student
from traflow_pipeline.loading import load_teacher as load_teacher
from traflow_pipeline.loading import open_dataset as open_dataset
from traflow_pipeline.samples import Samples as Samples
from traflow_pipeline.stages import evaluate as evaluate
from traflow_pipeline.stages import generate as generate
from traflow_pipeline.stages import train as train
from traflow_pipeline.student_sampler import StudentSampler as StudentSampler
from traflow_pipeline.trajectory_dataset import Trajectory as Trajectory
from traflow_pipeline.trajectory_dataset import TrajectoryDataset as TrajectoryDataset
from trainer.config import TrainConfig as TrainConfig
