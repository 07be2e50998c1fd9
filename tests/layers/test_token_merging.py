"""Token merging: against slow loops and duplicated tokens, on trained models, and settings that it cannot have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vitx
from vitx.analysis.cost import count_cost
from vitx.configuration import Words, override
from vitx.layers.attention import SelfAttention
from vitx.layers.token_merging import TokenMerging, find_owners, match, merge, unmerge
from vitx.layers.transformer import Encoder, EncoderBlock

SMALL = {"num_frames": 4, "image_size": 16, "tubelet_size": (2, 4, 4), "num_classes": 0}
SMALL |= {"hidden_size": 24, "num_layers": 3, "num_heads": 2, "mlp_dim": 24}
MODELS = ("vivit_b_16x2", "videomae_b_16x2", "vivit_b_16x2_fe")
# in an encoder of two blocks: 6 of 12 tokens in the first, none in the second
PAIRS = (None, TokenMerging(0), TokenMerging(3, "decreasing"), TokenMerging(3, "decreasing", False))
THREE = (None, TokenMerging(1), TokenMerging(1, proportional_attention=False))


@pytest.fixture(scope="module")
def video():
    return jax.random.normal(jax.random.key(3), (2, 4, 16, 16, 3))


@pytest.fixture(scope="module")
def trained(video):
    """{name: (model, variables far from the initial ones)}; nothing is compiled."""

    def create(name):
        model = vitx.create_model(name, **SMALL)
        shapes, rng = jax.eval_shape(model.init, jax.random.key(0), video), np.random.default_rng(0)
        return model, jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), shapes)

    return {name: create(name) for name in MODELS}


def merge_slowly(x, sizes, keys, r, num_prefix):
    """Returns (tokens, sizes, where each token went), by the sentences of the paper's section 3."""
    places = range(num_prefix, len(x))
    first = [i for i in places if i % 2 == 0]  # tokens alternate between two sets
    second = [i for i in places if i % 2 == 1]

    def cosine(i, j):
        return keys[i] @ keys[j] / np.sqrt((keys[i] @ keys[i]) * (keys[j] @ keys[j]))

    best = {i: max(second, key=lambda j, i=i: cosine(i, j)) for i in first}  # an edge to the most similar token
    edges = sorted(first, key=lambda i: -cosine(i, best[i]))[:r]  # the r most similar edges stay
    order = [*range(num_prefix), *(i for i in first if i not in edges), *second]
    groups = [[i] + [edge for edge in edges if best[edge] == i] for i in order]
    tokens = [sum(sizes[i] * x[i] for i in group) / sum(sizes[i] for i in group) for group in groups]
    owners = [next(new for new, group in enumerate(groups) if i in group) for i in range(len(x))]
    return np.array(tokens), np.array([sum(sizes[i] for i in group) for group in groups]), owners


@pytest.mark.parametrize(("num_tokens", "num_prefix", "r"), [(12, 0, 6), (13, 0, 5), (11, 1, 5), (12, 1, 3), (9, 2, 2)])
def test_merging_equals_a_slow_loop(num_tokens, num_prefix, r):
    rng = np.random.default_rng(num_tokens)
    x, keys = rng.normal(size=(2, num_tokens, 5)).astype(np.float32)
    sizes = rng.integers(1, 9, num_tokens).astype(np.float32)

    @jax.jit
    def compute(x, sizes, keys):
        matching = match(keys, r, num_prefix)
        return *merge(x, sizes, matching, num_prefix), find_owners(matching, num_tokens, num_prefix)

    tokens, new_sizes, found_owners = compute(x, sizes, keys)
    expected, expected_sizes, owners = merge_slowly(x, sizes, keys, r, num_prefix)
    np.testing.assert_allclose(tokens, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(new_sizes, expected_sizes)
    np.testing.assert_array_equal(found_owners, owners)


def test_merging_then_unmerging_conserves_sizes_and_sums():
    x, sizes, owners = jax.random.normal(jax.random.key(0), (17, 4)), jnp.ones(17), jnp.arange(17)

    @functools.partial(jax.jit, static_argnums=3)
    def merge_some(x, sizes, owners, r):
        matching = match(x, r, 1)
        return *merge(x, sizes, matching, 1), find_owners(matching, len(x), 1)[owners]

    unmerge_all = jax.jit(unmerge)
    first = x
    for r in (8, 4, 2):
        x, sizes, owners = merge_some(x, sizes, owners, r)
        assert sizes.sum() == 17 and len(x) == len(sizes)
        np.testing.assert_allclose(unmerge_all(x, owners).sum(axis=0), first.sum(axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(np.bincount(owners), sizes)
    assert len(x) == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_class_tokens_are_untouched(dtype):
    keys = jnp.ones((7, 4))  # the class token is as similar as all others
    x = jax.random.normal(jax.random.key(0), (7, 4), dtype)
    merged, sizes = merge(x, jnp.ones(7), match(keys, 3, 1), 1)
    np.testing.assert_array_equal(merged[0], x[0])
    assert sizes[0] == 1 and sizes.sum() == 7 and merged.dtype == x.dtype


def test_proportional_attention_equals_attention_over_duplicated_tokens():
    sizes = np.array([1, 3, 2, 1])
    x = jax.random.normal(jax.random.key(0), (2, 4, 6))
    duplicated = jnp.repeat(x, sizes, axis=1, total_repeat_length=7)
    attention = SelfAttention(2)
    variables = attention.init(jax.random.key(1), x, grid=(1, 1, 4))
    expected = attention.apply(variables, duplicated, grid=(1, 1, 7))[:, np.cumsum(sizes) - 1]
    bias = jnp.broadcast_to(jnp.log(sizes.astype(np.float32)), (2, 1, 1, 4))
    found, _ = attention.apply(variables, x, grid=(1, 1, 4), bias=bias, method="attend_with_keys")
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.fixture(scope="module")
def merged():
    """Twelve tokens in equal pairs after two blocks without and with merging, and four tokens of which three are equal.

    Compiled together, since many small programs take longer.
    """
    rng, settings = np.random.default_rng(1), {"grid": (1, 3, 4), "train": False}
    x = jnp.asarray(np.repeat(np.random.default_rng(0).normal(size=(1, 6, 8)), 2, axis=1), jnp.float32)
    encoder = Encoder(2, EncoderBlock(num_heads=2, mlp_dim=8))
    shapes = jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x, **settings), x)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)

    def encode(x, reducer=None):
        return encoder.clone(reducer=reducer).apply(variables, x, **settings)

    @jax.jit
    def encode_all(pairs, three):
        return [encode(pairs, merging) for merging in PAIRS], [encode(three, merging) for merging in THREE]

    return encode_all(x, x[:, jnp.array([0, 0, 2, 0])])


def test_a_block_that_merges_nothing_is_the_identity_bit_for_bit(merged):
    np.testing.assert_array_equal(merged[0][1], merged[0][0])


def test_merging_equal_tokens_changes_nothing(merged):
    """Half of the tokens give what all give, whether each is attended to twice or once."""
    for found in merged[0][2:]:
        np.testing.assert_allclose(found, merged[0][0], rtol=1e-5, atol=1e-5)


def test_attention_counts_a_token_as_often_as_the_tokens_that_it_stands_for(merged):
    """Three of a token and one of another: only proportional attention gives what all four give."""
    plain, proportional, other = merged[1]
    assert abs(proportional - plain).max() < 1e-5 and abs(other - plain).max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_no_merging_is_the_identity_bit_for_bit(trained, video, name):
    model, variables = trained[name]
    expected = jax.jit(model.apply)(variables, video)
    found = jax.jit(model.copy(reducer=TokenMerging(0)).apply)(variables, video)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", MODELS)
def test_trained_models_merge_without_new_parameters(trained, video, name):
    model, variables = trained[name]
    merging = override(model, {"reducer": Words(["TokenMerging"]), "reducer.r": Words(["3"])})
    assert merging.reducer == TokenMerging(3)
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(merging.init, jax.random.key(0), video))
    assert shapes == jax.tree.map(jnp.shape, variables)

    @jax.jit
    def compute(variables):
        tokens = model.apply(variables, video, method="tokens")
        encoded = merging.apply(variables, tokens, method="encode")
        return tokens, encoded, merging.apply(variables, video), model.apply(variables, video)

    tokens, encoded, features, plain = compute(variables)
    assert encoded.shape == tokens.shape  # every token has the value of its group
    assert 1e-5 < abs(features - plain).max() < 2 * abs(plain).max()

    def loss(variables, model):
        return (model.apply(variables, video).astype(jnp.float32) ** 2).sum()

    for fields in ({"remat_policy": "dots_saveable"}, {"dtype": "bfloat16"}):
        gradients = jax.device_get(jax.jit(jax.grad(loss), static_argnums=1)(variables, merging.copy(**fields)))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
        assert abs(gradients["params"]["embedding"]["kernel"]).max() > 0


def test_model_2_merges_within_a_frame(trained, video):
    model, variables = trained["vivit_b_16x2_fe"]
    model = model.copy(reducer=TokenMerging(4))

    @jax.jit
    def encode(video):
        frames = model.apply(variables, video, train=False, method="frame_tokens")
        return model.apply(variables, frames, train=False, method="encode_frames")

    found, changed = encode(video), encode(video.at[:, 2:].multiply(-2))
    np.testing.assert_array_equal(found[:, 0], changed[:, 0])
    assert abs(found[:, 1] - changed[:, 1]).max() > 1e-3


def test_schedules_leave_as_many_tokens_as_in_the_paper():
    """ViT-L on 16 frames: 8 x 14 x 14 tokens and a class token, 24 blocks (section 5)."""
    counts = TokenMerging(65).count_tokens((8, 14, 14), 1, 24)
    assert counts[:3] == (1569, 1504, 1439) and len(counts) == 25
    assert counts[22:] == (139, 74, 38)  # the last block merges half of 73
    counts = TokenMerging(65, "decreasing").count_tokens((8, 14, 14), 1, 24)
    assert counts[:2] == (1569, 1439) and counts[-2] == counts[-1] == 20
    assert TokenMerging(2, "decreasing").count_tokens((1, 3, 3), 0, 1) == (9, 7)


def test_cost_counts_the_tokens_that_are_left():
    model = vitx.create_model("vivit_b_16x2", **SMALL)

    def macs(num_tokens, num_left, matched):
        attention = 4 * num_tokens * 24**2 + 2 * num_tokens**2 * 24
        return attention + matched[0] * matched[1] * 12 + 2 * num_left * 24**2

    embedding = 32 * (2 * 4 * 4 * 3) * 24
    # 32 tokens and a class token; similarities of the two sets have the size of a head
    expected = [macs(33, 26, (16, 16)), macs(26, 19, (12, 13)), macs(19, 12, (9, 9))]
    merging = model.copy(reducer=TokenMerging(7))
    assert count_cost(merging, merging.input_shape).macs == embedding + sum(expected)
    assert merging.reducer.count_tokens(merging.grid, 1, 3) == (33, 26, 19, 12)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("vivit_b_16x2", {"reducer": TokenMerging(17)}, ["reducer.r", "17", "32", "16"]),
        ("vivit_b_16x2", {"reducer": TokenMerging(9, "decreasing")}, ["reducer.r", "18", "32", "at most 8"]),
        ("vivit_b_16x2_fe", {"reducer": TokenMerging(9)}, ["reducer.r", "9", "16", "8"]),
        ("vivit_b_16x2_fsa", {"reducer": TokenMerging(2)}, ["reducer", "layout time", "joint"]),
        ("vivit_b_16x2_fdp", {"reducer": TokenMerging(2)}, ["reducer", "layout time_and_space", "joint"]),
        ("timesformer_b_16_divided", {"reducer": TokenMerging(2)}, ["reducer", "layout time", "joint"]),
        ("timesformer_b_16_axial", {"reducer": TokenMerging(2)}, ["reducer", "layout time", "joint"]),
        ("vivit_b_16x2", {"reducer": TokenMerging(2), "scan_layers": True}, ["scan_layers", "reducer"]),
        ("videomae_b_16x2_pretrain", {"reducer": TokenMerging(2)}, ["reducer", "None"]),
    ],
)
def test_a_reducer_that_a_model_cannot_have_is_refused_when_the_model_is_created(name, fields, words):
    with pytest.raises(vitx.UserError) as error:
        vitx.create_model(name, **(SMALL | {"num_classes": 2} if "pretrain" not in name else {}) | fields)
    assert all(word in str(error.value) for word in words), error.value


def test_a_number_of_tokens_below_zero_is_refused():
    with pytest.raises(vitx.UserError, match="r is -1"):
        override(vitx.create_model("vivit_b_16x2"), {"reducer": "TokenMerging", "reducer.r": -1})
    with pytest.raises(vitx.UserError, match=r"reducer\.r"):
        override(vitx.create_model("vivit_b_16x2"), {"reducer": "TokenMerging"})


def test_many_blocks_compile_in_bounded_time_and_memory(bounded):
    """Owners of tokens are indices of indices; copied into whatever reads them, they would double with every block."""
    small = {
        "num_frames": 4,
        "image_size": 16,
        "tubelet_size": (2, 2, 2),
        "hidden_size": 8,
        "num_heads": 1,
        "mlp_dim": 8,
    }
    model = vitx.create_model("vivit_b_16x2", **small, num_layers=12, reducer=TokenMerging(r=8))
    video = jax.ShapeDtypeStruct((1, 4, 16, 16, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), video)
    assert jax.jit(model.apply).lower(variables, video).compile().memory_analysis().temp_size_in_bytes < 2**22
