"""The count of transposes and copies reads XLA's programs as it says: only what is written to memory counts."""

import runpy

import jax
import jax.numpy as jnp
import pytest

PROGRAM = """\
HloModule jit_step

%fused_inner (p.0: f32[4,8]) -> f32[8,4] {
  %p.0 = f32[4,8]{1,0} parameter(0)
  %transpose.1 = f32[8,4]{0,1} transpose(%p.0), dimensions={1,0}
  ROOT %add.1 = f32[8,4]{1,0} add(%transpose.1, %transpose.1)
}

%fused_outputs (p.1: f32[4,8]) -> (f32[8,4], f32[4,8]) {
  %p.1 = f32[4,8]{1,0} parameter(0)
  %copy.1 = f32[8,4]{1,0} copy(%p.1), metadata={op_name="jit(step)/encoder/block_7/attention/transpose" id=4}
  %bitcast.1 = f32[32]{0} bitcast(%copy.1)
  %negate.1 = f32[4,8]{1,0} negate(%p.1)
  ROOT %tuple.1 = (f32[32]{0}, f32[4,8]{1,0}) tuple(%bitcast.1, %negate.1)
}

%body (state: f32[4,8]) -> f32[4,8] {
  %state = f32[4,8]{1,0} parameter(0)
  ROOT %copy.4 = f32[4,8]{1,0} copy(%state)
}

ENTRY %main (x: f32[4,8]) -> f32[8,4] {
  %x = f32[4,8]{1,0} parameter(0)
  %copy.2 = bf16[4,8]{1,0} copy(%x)
  %fusion.1 = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%fused_inner
  %fusion.2 = (f32[32]{0}, f32[4,8]{1,0}) fusion(%x), kind=kLoop, calls=%fused_outputs
  %while.1 = f32[4,8]{1,0} while(%x), condition=%test, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %transpose.3 = f32[8,4]{1,0} transpose(%x), dimensions={1,0}, metadata={op_name="jit(step)/head/transpose"}
}
"""


@pytest.fixture(scope="module")
def count_operations(pytestconfig):
    path = pytestconfig.rootpath / "experiments" / "benchmarks" / "transposes.py"
    return runpy.run_path(str(path))["count_operations"]


@pytest.mark.smoke
def test_what_a_fusion_keeps_to_itself_is_not_counted(count_operations):
    assert count_operations(PROGRAM) == {
        ("copy", 64, "no name"): 1,
        ("copy", 128, "no name"): 3,
        ("copy", 128, "encoder/block/attention/transpose"): 1,
        ("transpose", 128, "head/transpose"): 1,
    }


def test_a_compiled_program_is_read(count_operations):
    """The product of a matrix and its sorted transpose: XLA has no fusion for the transpose between the two."""

    def multiply(x: jax.Array) -> jax.Array:
        return x @ jnp.sort(x.T, axis=1)

    counts = count_operations(jax.jit(multiply).lower(jnp.ones((64, 64))).compile().as_text())
    assert sum(counts.values()) >= 1 and {size for _, size, _ in counts} == {64 * 64 * 4}
