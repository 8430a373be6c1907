import pytest
import torch
from pydantic import TypeAdapter

from training.models.trunks import TrunkConfig, build_trunk
from training.optimizer import AdamWConfig, OptimConfig, SgdConfig, build_optimizer, learning_rate

CONFIGS = [
    SgdConfig(name="sgd", lr=0.4, weight_decay=0.1),
    AdamWConfig(name="adamw", lr=0.4, weight_decay=0.1),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_the_rate_rises_to_its_peak_and_falls_to_zero(config):
    rates = [learning_rate(config, n / 1000) for n in range(1001)]
    assert rates[0] == 0
    assert rates[25] == pytest.approx(0.2)
    assert rates[50] == max(rates) == pytest.approx(0.4)
    assert rates[:51] == sorted(rates[:51])
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[525] == pytest.approx(0.2)  # Halfway down the cosine.
    assert rates[1000] == pytest.approx(0, abs=1e-12)


def test_the_rate_ends_at_zero_when_the_clock_runs_over():
    assert learning_rate(CONFIGS[0], 1.2) == pytest.approx(0, abs=1e-12)


def test_without_warmup_the_rate_starts_at_its_peak():
    config = SgdConfig(name="sgd", lr=0.4, warmup=0)
    assert learning_rate(config, 0) == 0.4


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_only_matrices_and_filters_decay(config):
    trunk = build_trunk(TrunkConfig(name="small"))
    optimizer = build_optimizer(trunk, config)
    groups = optimizer.param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(trunk.parameters()))
    for name, parameter in trunk.named_parameters():
        is_filter = name.endswith("weight") and ".bn" not in name and "downsample.1" not in name
        assert decay[id(parameter)] == (0.1 if is_filter else 0), name


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_class_token_and_positions_do_not_decay_though_they_have_three_axes(config):
    model = torch.nn.ModuleDict({"trunk": build_trunk(TrunkConfig(name="vit_s16"), view_px=32)})
    decayed, spared = (group["params"] for group in build_optimizer(model, config).param_groups)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert len(decayed) + len(spared) == len(names)
    # Every block has 4 matrices: queries, keys and values in one; output; two of the MLP.
    assert len(decayed) == 1 + 12 * 4
    thick = sorted(names[id(parameter)] for parameter in spared if parameter.ndim > 1)
    assert thick == ["trunk.net.class_token", "trunk.net.encoder.pos_embedding"]
    assert all(names[id(parameter)].endswith("weight") for parameter in decayed)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_a_step_without_gradient_moves_only_what_decays(config):
    layer = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(layer, config)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    shrunk = (layer.weight / weight).detach()
    assert torch.allclose(shrunk, shrunk[0, 0])
    assert 0.9 < shrunk[0, 0] <= 0.96 + 1e-6  # lr * weight_decay, and more under momentum.
    assert torch.equal(layer.bias, bias)


def test_sgd_uses_nesterov_momentum():
    layer = torch.nn.Linear(1, 1, bias=False)
    start = layer.weight.item()
    optimizer = build_optimizer(layer, SgdConfig(name="sgd", lr=0.1, weight_decay=0))
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    assert layer.weight.item() == pytest.approx(start - 0.1 * 1.9)


def test_the_name_chooses_the_optimizer():
    parse = TypeAdapter(OptimConfig).validate_python
    assert isinstance(parse({"name": "sgd", "lr": 1}), SgdConfig)
    assert isinstance(parse({"name": "adamw", "lr": 1}), AdamWConfig)
