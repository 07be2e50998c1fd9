"""ConvLSTM-S of OpenSTL on Moving MNIST: ten frames in, the next ten out.

    vitx train experiments/moving_mnist/convlstm_forecaster_openstl_s.py --workdir runs/mmnist_convlstm_openstl_s
    experiments/launch/tpu_vm.sh run experiments/moving_mnist/convlstm_forecaster_openstl_s.py --workdir gs://BUCKET/RUN

Expected: mse 29.80, SSIM 0.9288 (chengtan9907/OpenSTL, docs/en/model_zoos/video_benchmarks.md). Not run here.

Data: `pip install -e '.[tf]' && tfds build moving_mnist --file_format=array_record`.
Follows: configs/mmnist/ConvLSTM.py of OpenSTL: Adam with one cycle to 5e-4, batches of 16, 200 epochs, scheduled
sampling over 50,000 steps.
Differs, so that the numbers cannot be compared yet: OpenSTL trains on 10,000 sequences that it draws from MNIST, and
tests on the 10,000 that TFDS has. Here 8,000 of those train, and 1,000 test.
Hardware: not stated; 113 frames per second in inference.
"""

from vitx.data.moving_mnist import MovingMNIST
from vitx.data.pipeline import Data
from vitx.experiment import Experiment
from vitx.models import create_model
from vitx.tasks.frame_prediction import FramePrediction
from vitx.training.loop import Training
from vitx.training.optimizers import AdamW
from vitx.training.schedules import OneCycle

experiment = Experiment(
    model=create_model("convlstm_forecaster_openstl_s"),
    data=Data(
        dataset=MovingMNIST(), num_frames=20, frame_stride=1, image_size=(64, 64), batch_size=16, eval_batch_size=50
    ),
    task=FramePrediction(sampling_steps=50_000),
    optimizer=AdamW(peak_lr=5e-4, schedule=OneCycle(), weight_decay=0.0, clip_norm=None),
    training=Training(steps=200 * 10_000 // 16, log_every=100, evaluate_every=5000, checkpoint_every=1000),
)
