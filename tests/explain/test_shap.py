"""KernelSHAP agrees with shap's KernelExplainer on the same network, clip and tubelets. Needs the extra peers."""

import numpy as np
import pytest

from tests.explain.conftest import TARGET
from vitx.explain.surrogates import kernel_shap
from vitx.explain.tubelets import Tubelets, score_coalitions

pytestmark = pytest.mark.peers


@pytest.mark.parametrize(("tubelet", "samples"), [((2, 12, 16), 254), ((2, 24, 32), 2), ((4, 12, 11), 62)])
@pytest.mark.parametrize("name", ["vivit_ti_16x2_fe", "cnn"])
def test_kernel_shap_agrees_where_all_coalitions_are_computed(name, tubelet, samples, transformer, cnn, video):
    shap = pytest.importorskip("shap")
    model, variables = cnn if name == "cnn" else transformer(name)
    tubelets = Tubelets(video.shape[:3], tubelet)
    settings = {"tubelets": tubelets, "baseline": 0.0, "batch_size": 16}

    def logits(kept):  # [k, m] of 0 and 1; shap asks with several batch sizes
        return score_coalitions(model, variables, video, TARGET, (kept > 0.5).__getitem__, len(kept), **settings)

    explainer = shap.KernelExplainer(logits, np.zeros((1, tubelets.count)))
    expected = explainer.shap_values(np.ones((1, tubelets.count)), nsamples=samples, l1_reg=False, silent=True)
    found = kernel_shap(model, variables, video, TARGET, tubelet=tubelet, samples=samples)
    expected = np.asarray(tubelets.spread(np.ravel(expected).astype(np.float32)))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
