"""Convolutions layer by layer, vitx and PyTorch in turns: python experiments/benchmarks/convolution.py

Needs PyTorch (`pip install 'vitx[peers]'`). Layers that keep the shape of their clip are timed eight in a row, as in
networks: for a single layer, allocating fresh memory for the result would dominate. "gradients" is the forward pass
with the gradients of the video and the kernel. Both libraries use as many threads as there are cores. Results are
compared before anything is timed.
"""

import time

import jax
import numpy as np
import torch
from tqdm import tqdm

from vitx.analysis.bench import count_cores
from vitx.layers.convolution_cpu import convolve_on_cpu

BATCH, ROUNDS = 2, 7
# Seconds before two untimed calls: a short call must find its own library's threads awake, not the other library's.
PAUSE = 0.03
# (kernel [t, h, w, channels of a group, channels out], stride, groups, clip [frames, height, width, channels])
LAYERS = {
    "depthwise 3x3x3": ((3, 3, 3, 1, 64), (1, 1, 1), 64, (8, 56, 56, 64)),
    "depthwise 3x3x3, of X3D": ((3, 3, 3, 1, 54), (1, 1, 1), 54, (13, 40, 40, 54)),
    "depthwise 3x3x3, a quarter": ((3, 3, 3, 1, 108), (1, 1, 1), 108, (13, 20, 20, 108)),
    "depthwise 3x3x3, a sixteenth": ((3, 3, 3, 1, 216), (1, 1, 1), 216, (13, 10, 10, 216)),
    "depthwise 3x3x3 by 1x2x2": ((3, 3, 3, 1, 54), (1, 2, 2), 54, (13, 80, 80, 54)),
    "depthwise 5x1x1": ((5, 1, 1, 1, 24), (1, 1, 1), 24, (13, 80, 80, 24)),
    "3x3x3": ((3, 3, 3, 64, 64), (1, 1, 1), 1, (8, 56, 56, 64)),
    "3x3x3, a quarter": ((3, 3, 3, 128, 128), (1, 1, 1), 1, (8, 28, 28, 128)),
    "3x7x7 by 1x2x2": ((3, 7, 7, 3, 64), (1, 2, 2), 1, (16, 112, 112, 3)),
    "3x1x1": ((3, 1, 1, 64, 64), (1, 1, 1), 1, (8, 56, 56, 64)),
    "1x3x3": ((1, 3, 3, 64, 64), (1, 1, 1), 1, (8, 56, 56, 64)),
    "1x1x1": ((1, 1, 1, 64, 256), (1, 1, 1), 1, (8, 56, 56, 64)),
}


def ours(stride, groups, padding, depth):
    """Returns the compiled forward pass, and the forward pass with gradients."""

    def forward(x, kernel):
        for _ in range(depth):
            x = convolve_on_cpu(x, kernel, stride, padding, groups)
        return x

    def gradients(x, kernel, direction):
        out, back = jax.vjp(forward, x, kernel)
        return out, *back(direction)

    return jax.jit(forward), jax.jit(gradients)


def main() -> None:
    torch.set_num_threads(count_cores())
    print("| layer | clip | | PyTorch | ours | quartiles | PyTorch / ours |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for name, (shape, stride, groups, clip) in LAYERS.items():
        random = np.random.default_rng(0)
        x, kernel = (random.standard_normal(size, np.float32) for size in ((BATCH, *clip), shape))
        kernel *= np.prod(shape[:4]) ** -0.5
        depth = 8 if stride == (1, 1, 1) and clip[-1] == shape[-1] else 1
        padding = tuple(size // 2 for size in shape[:3])
        settings = {"stride": stride, "padding": padding, "groups": groups}
        torch_x = torch.tensor(x.transpose(0, 4, 1, 2, 3).copy(), requires_grad=True)
        torch_kernel = torch.tensor(kernel.transpose(4, 3, 0, 1, 2).copy(), requires_grad=True)

        def torch_forward(x=torch_x, kernel=torch_kernel, settings=settings, depth=depth):
            for _ in range(depth):
                x = torch.nn.functional.conv3d(x, kernel, **settings)
            return x

        with torch.no_grad():
            out = torch_forward()
        direction = random.standard_normal(out.shape, np.float32)
        channels_last, torch_direction = direction.transpose(0, 2, 3, 4, 1).copy(), torch.tensor(direction)

        def torch_inference(torch_forward=torch_forward):
            with torch.no_grad():
                return torch_forward()

        def torch_gradients(torch_forward=torch_forward, inputs=(torch_x, torch_kernel), direction=torch_direction):
            return torch.autograd.grad(torch_forward(), inputs, direction)

        compiled = ours(stride, groups, padding, depth)
        on_device = jax.device_put((x, kernel, channels_last))
        _, x_gradient, kernel_gradient = compiled[1](*on_device)
        for own, expected, axes in zip(
            (x_gradient, kernel_gradient), torch_gradients(), ((0, 2, 3, 4, 1), (2, 3, 4, 1, 0)), strict=True
        ):
            expected = expected.numpy().transpose(axes)
            assert np.abs(own - expected).max() < 1e-4 * np.abs(expected).max(), name
        label = "x".join(map(str, clip)) + (f", {depth} in a row" if depth > 1 else "")
        for kind, what in enumerate(("forward", "gradients")):
            arguments = on_device[: 2 + kind]
            calls = {
                "PyTorch": (torch_inference, torch_gradients)[kind],
                "ours": lambda call=compiled[kind], arguments=arguments: jax.block_until_ready(call(*arguments)),
            }
            milliseconds = {call: [] for call in calls}
            for number in tqdm(range(ROUNDS + 2), desc=name, leave=False):
                for call, run in calls.items():
                    time.sleep(PAUSE)
                    run()
                    run()
                    began = time.perf_counter()
                    run()
                    if number > 1:
                        milliseconds[call].append(1e3 * (time.perf_counter() - began))
            medians = {call: float(np.median(times)) for call, times in milliseconds.items()}
            low, high = np.percentile(milliseconds["ours"], (25, 75))
            ratio = medians["PyTorch"] / medians["ours"]
            print(
                f"| {name} | {label} | {what} | {medians['PyTorch']:.1f} | {medians['ours']:.1f} "
                f"| {low:.1f} to {high:.1f} | **{ratio:.2f}** |",
                flush=True,
            )


if __name__ == "__main__":
    main()
