import pytest
import torch
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from engine_service.layers.embedding import Embedding
from engine_service.layers.linear import Linear
from engine_service.layers.norm import RMSNorm
from kernels.silu_and_mul import silu_and_mul


def test_norm_adds_to_the_residual_stream_first():
    torch.manual_seed(0)
    norm, reference = RMSNorm(8, 1e-6, torch.float32), Qwen3RMSNorm(8, 1e-6)
    weight = torch.rand(8)
    norm.weight.copy_(weight)
    reference.weight.data.copy_(weight)
    x, residual = torch.randn(2, 3, 8)

    added, added_residual = norm(x, residual)

    torch.testing.assert_close(added, reference(x + residual).detach())
    torch.testing.assert_close(added_residual, x + residual)


def test_gate_comes_before_up():
    x, gate, up = torch.randn(3, 5), torch.randn(4, 5), torch.randn(4, 5)
    layer = Linear(5, 8, torch.float32)
    layer.weight.copy_(torch.cat((gate, up)))

    result = layer.gated_linear(x)

    torch.testing.assert_close(result, torch.nn.functional.silu(x @ gate.T) * (x @ up.T))


def test_norm_before_a_projection_adds_to_the_residual_stream_first():
    norm, layer = RMSNorm(8, 1e-6, torch.float32), Linear(8, 4, torch.float32)
    norm.weight.copy_(torch.rand(8))
    layer.weight.copy_(torch.randn(4, 8))
    x, residual = torch.randn(2, 3, 8)

    begun, begun_residual = layer.norm_linear(norm, x, None)
    added, added_residual = layer.norm_linear(norm, x, residual)

    torch.testing.assert_close(begun, layer(norm(x, torch.zeros_like(x))[0]))
    torch.testing.assert_close(begun_residual, x)
    torch.testing.assert_close(added, layer(norm(x, residual)[0]))
    torch.testing.assert_close(added_residual, x + residual)


def test_embedding_is_its_own_inverse_as_a_head():
    embedding = Embedding(4, 4, torch.float32)
    embedding.weight.copy_(torch.eye(4))

    logits = embedding.logits(embedding(torch.tensor([2, 0], dtype=torch.int32)))

    assert logits.argmax(-1).tolist() == [2, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_keep_the_dtype_and_need_no_gradient(dtype):
    linear = Linear(4, 6, dtype)
    linear.weight.fill_(1.0)

    result = linear(torch.ones(2, 4, dtype=dtype))

    assert result.dtype == dtype
    assert result.shape == (2, 6)
    assert (result == 4).all()
    assert not result.requires_grad


def test_bias_is_added_to_each_kind_of_product():
    torch.manual_seed(0)
    layer, norm = Linear(6, 4, torch.float32, has_bias=True), RMSNorm(6, 1e-6, torch.float32)
    norm.weight.copy_(torch.rand(6))
    layer.weight.copy_(torch.randn(4, 6))
    layer.bias.copy_(torch.randn(4))
    x, residual = torch.randn(3, 6), torch.randn(3, 6)
    biased, normed = layer(x), layer.norm_linear(norm, x, residual)[0]
    gated = layer.gated_linear(x), layer.norm_linear(norm, x, residual, is_gated=True)[0]

    torch.testing.assert_close(gated, (silu_and_mul(biased), silu_and_mul(normed)))
    bias = layer.bias.clone()
    layer.bias.zero_()
    torch.testing.assert_close(biased, layer(x) + bias)
    torch.testing.assert_close(normed, layer.norm_linear(norm, x, residual)[0] + bias)


def test_slots_of_a_merged_layer_are_rows_of_its_parameters():
    layer = Linear(3, 10, torch.float32, has_bias=True)
    layer.weight.copy_(torch.arange(30.0).view(10, 3))
    layer.bias.copy_(torch.arange(10.0))

    slots = {slot.name: slot for slot in layer.slots(["q", "k", "v"], [6, 2, 2])}

    assert sorted(slots) == ["k.bias", "k.weight", "q.bias", "q.weight", "v.bias", "v.weight"]
    assert (slots["k.weight"].dim, slots["k.weight"].offset, slots["k.weight"].size) == (0, 6, 2)
    assert torch.equal(slots["k.weight"].target, layer.weight[6:8])
    assert torch.equal(slots["v.bias"].target, layer.bias[8:])
    slots["q.weight"].target.fill_(-1)
    assert (layer.weight[:6] == -1).all()


def test_slots_that_do_not_fill_a_layer_are_refused():
    with pytest.raises(AssertionError, match="do not fill"):
        list(Linear(3, 10, torch.float32).slots(["q", "k"], [6, 2]))
