"""The three-layer ConvLSTM of Shi et al. 2015 on Moving MNIST: ten frames in, the next ten out.

    vitx train experiments/moving_mnist/convlstm_forecaster_5x5_128_64_64.py --workdir runs/mmnist_convlstm_5x5
    sbatch experiments/launch/slurm.sh experiments/moving_mnist/convlstm_forecaster_5x5_128_64_64.py --workdir runs/RUN

Expected: cross-entropy 3670.85 nats per sequence (arXiv:1506.04214, table 1). Not run here.

Data: as in convlstm_forecaster_openstl_s.py. The authors drew 10,000 training sequences and 3,000 for the test.
Follows: section 4.1 of the paper: cross-entropy, RMSProp with a learning rate of 1e-3 and a decay of 0.9, stopped
early; all as read second-hand. Its batch size and number of steps are not known: those of
convlstm_forecaster_openstl_s.py stand in.
Differs, so that the numbers cannot be compared yet: the sequences are others.
Hardware: not stated.
"""

from vitx import load_experiment
from vitx.models import create_model
from vitx.tasks.frame_prediction import FramePrediction
from vitx.training.optimizers import Optax
from vitx.training.schedules import Constant

experiment = load_experiment("convlstm_forecaster_openstl_s.py").override(
    {
        "model": create_model("convlstm_forecaster_5x5_128_64_64"),
        "task": FramePrediction(mse=0.0, cross_entropy=1.0),
        "optimizer": Optax(
            name="rmsprop", arguments=(("decay", 0.9),), peak_lr=1e-3, schedule=Constant(warmup=0.0), clip_norm=None
        ),
        "training.patience": 5,
    }
)
