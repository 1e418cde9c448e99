"""The networks: they see everything they are given, start at zero, compile without a break, and fit the wrappers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sdediff as sd
from sdediff import training as tr
from sdediff.networks import MLP, DiffusersUNet, Network, UNet

CASES = {
    "MLP": lambda: MLP((2, 3), width=16, depth=2, classes=4),
    "digits": lambda: UNet((8, 8), channels=(8, 16), classes=4),
    "colour, odd sizes, attention": lambda: UNet((3, 9, 7), channels=(8, 16, 24), attention=True, classes=4),
    "signal": lambda: UNet((16,), channels=(8, 12), attention=(True, True), classes=4),
    "signal with channels": lambda: UNet((2, 20), spatial=1, channels=(8,), blocks=1, classes=4),
}


def woken(net):
    """The network with its zeros replaced, so that everything in it has an effect."""
    torch.manual_seed(1)
    for p in net.parameters():
        if not bool(p.any()):
            nn.init.normal_(p, std=0.3)
    return net


def inputs(net, batch=5, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, *net.event_shape, generator=g, dtype=dtype)
    return x, torch.linspace(0.1, 0.9, batch, dtype=dtype), torch.arange(batch) % (net.classes + 1)


@pytest.mark.parametrize("case", CASES)
def test_a_fresh_network_predicts_0_and_its_first_gradients_are_finite_and_not_large(case):
    torch.manual_seed(0)
    net = CASES[case]()
    x, t, labels = inputs(net)
    assert torch.equal(net(x, t, labels), torch.zeros_like(x))
    loss = (net(x, t, labels) - torch.randn_like(x)).square().mean()
    loss.backward()
    norms = {name: float(p.grad.norm()) for name, p in net.named_parameters() if p.grad is not None}
    assert norms["outward.weight"] > 0 and max(norms.values()) < 10
    assert all(norm == 0 for name, norm in norms.items() if not name.startswith("outward"))


@pytest.mark.parametrize("case", CASES)
def test_everything_has_an_effect_and_samples_none_on_each_other(case):
    net = woken(CASES[case]()).double()
    x, t, labels = inputs(net, dtype=torch.float64)
    net(x, t, labels).square().sum().backward()
    assert all(float(p.grad.abs().max()) > 1e-12 for p in net.parameters())
    convolutions = [p.grad for p in net.parameters() if p.ndim > 2]
    assert all(
        bool((g.abs().transpose(0, 1).flatten(1).amax(1) > 1e-12).all()) for g in convolutions
    )  # all channels in
    with torch.no_grad():
        base = net(x, t, labels)
        for other in (net(x, t + 0.1, labels), net(x, t, (labels + 1) % 5)):
            assert bool(((other - base).flatten(1).abs().amax(1) > 1e-4).all())
        torch.testing.assert_close(net(x[2:3], t[2:3], labels[2:3]), base[2:3], rtol=1e-9, atol=1e-9)
        # The whole input is seen by some output: a nudge anywhere is felt.
        for place in range(x[0].numel()):
            nudged = x[:1].clone().reshape(1, -1)
            nudged[0, place] += 0.1
            assert float((net(nudged.reshape(x[:1].shape), t[:1], labels[:1]) - base[:1]).abs().max()) > 1e-6
        null = torch.full((5,), 4)
        assert torch.equal(net(x, t), net(x, t, null)) and int(net.null) == 4


def test_a_unet_without_attention_is_local_and_with_it_is_not():
    """One level, one block: three convolutions of three points each way, so nothing is felt beyond that but through norms.
    Attention sees all places; norms are taken out."""
    for attention, far in ((False, False), (True, True)):
        torch.manual_seed(0)
        net = woken(UNet((64,), channels=(8,), blocks=1, attention=attention)).double()
        for module in net.modules():
            if isinstance(module, nn.GroupNorm):
                module.forward = lambda h: h
        x = torch.randn(1, 64, dtype=torch.float64)
        nudged = x.clone()
        nudged[0, 0] += 1.0
        with torch.no_grad():
            moved = (net(nudged, torch.ones(1).double()) - net(x, torch.ones(1).double())).abs()[0]
        assert bool((moved[40:] > 1e-9).any()) == far and float(moved[0]) > 1e-4


@pytest.mark.parametrize("case", ["MLP", "colour, odd sizes, attention"])
def test_networks_compile_without_a_break(case):
    """fullgraph raises on a break; aot_eager traces forward and backward and needs no compiler on the machine."""
    net = woken(CASES[case]())
    x, t, labels = inputs(net)
    want = net(x, t, labels)
    want.square().sum().backward()
    gradients = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    torch._dynamo.reset()
    net.compile(backend="aot_eager", fullgraph=True)
    got = net(x, t, labels)
    got.square().sum().backward()
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    for p, gradient in zip(net.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


def test_a_compiled_network_trains_and_is_saved_under_its_own_names(tmp_path):
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = MLP(2, width=8, depth=1)
    score = sd.NoisePrediction(sd.VP(), net)
    net.compile(backend="eager")
    fit = tr.fit(score, torch.randn(50, 2), steps=3, batch_size=8, seed=0, progress=False)
    tr.save(tmp_path / "a", fit.score)
    assert tr.load(tmp_path / "a").score.state_dict().keys() == score.state_dict().keys()


@pytest.mark.parametrize("case", CASES)
def test_half_precision_is_near(case):
    net = woken(CASES[case]())
    x, t, labels = inputs(net)
    want = net(x, t, labels)
    scale = float(want.detach().abs().max())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = net(x, t, labels)
    torch.testing.assert_close(mixed.float(), want, rtol=0, atol=0.05 * scale)
    whole = net.to(torch.bfloat16)(x.bfloat16(), t, labels)
    assert whole.dtype == torch.bfloat16
    torch.testing.assert_close(whole.float(), want, rtol=0, atol=0.1 * scale)


def test_a_unet_learns_a_score(tmp_path):
    """Checkerboards ± with noise: one number decides each image. The exact score of two points is known."""
    board = (torch.arange(4)[:, None] + torch.arange(4)) % 2 * 2.0 - 1
    data = torch.stack([board, -board])[torch.arange(512) % 2] + 0.1 * torch.randn(
        512, 4, 4, generator=torch.Generator().manual_seed(0)
    )
    torch.manual_seed(0)
    score = sd.VelocityPrediction(sd.CosineVP(), UNet((4, 4), channels=(8, 12), blocks=1))
    fit = tr.fit(score, data, steps=250, batch_size=64, lr=4e-3, ema=0.98, seed=0, progress=False)
    law = sd.densities.Mixture(torch.stack([board, -board]), std=0.1)
    exact = sd.ExactScore(score.sde, law)
    for log_snr, most in ((0.0, 0.15), (-3.0, 0.15)):  # root mean square, beside the noise's own 1
        t = float(score.sde.time_of(log_snr))
        x = exact.sample(500, t, seed=1)
        with torch.no_grad():
            error = (fit.score.noise(x, t) - exact.noise(x, t)).square().mean().sqrt()
        assert float(error) < most, f"log-SNR {log_snr}: {float(error):.3f}"
    tr.save_pretrained(tmp_path, fit.score)
    again = tr.from_pretrained(tmp_path).score
    assert torch.equal(again(x, t), fit.score(x, t))


def test_refusals_say_the_cure():
    for make, message in (
        (lambda: UNet((2, 3, 4, 5)), "at most one axis of channels"),
        (lambda: UNet((2, 3, 8), spatial=1), "at most one axis of channels"),
        (lambda: UNet((8, 8), spatial=3), "spatial = 3"),
        (lambda: UNet((8, 8), channels=()), "at least one level"),
        (lambda: UNet((8, 8), channels=(8, 0)), "must be positive"),
        (lambda: UNet((3, 8), channels=(8, 8, 8)), "too small for 3 levels"),
        (lambda: UNet((8, 8), attention=(True,)), "names 1 levels, channels has 2"),
        (lambda: Network((0,)), "must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(ValueError, match=r"UNet was made for \(B, \*\(8, 8\)\)"):
        UNet((8, 8), channels=(8,))(torch.zeros(2, 8, 7), torch.zeros(2))
    with pytest.raises(ValueError, match=r"UNet takes no condition: make it with UNet\(..., classes=K\)"):
        UNet((8, 8), channels=(8,))(torch.zeros(2, 8, 8), torch.zeros(2), torch.zeros(2).long())


# ---- networks of others ------------------------------------------------------------------------------------------------


def diffusers_unet(classes=None):
    import diffusers  # slow to import, and needed here alone

    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        attention_head_dim=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=classes,
    )  # fmt: skip


def test_a_unet_of_diffusers_is_a_score(tmp_path):
    """It trains, samples, takes labels, is guided, and is kept; its timestep is scale t + offset."""
    unet = diffusers_unet(4)
    net = DiffusersUNet(unet, scale=1000, offset=-1)
    score = sd.NoisePrediction(sd.VP(), net)
    x, labels = torch.randn(6, 1, 8, 8), torch.arange(6) % 3
    got = score.noise(x, 0.3, labels)
    torch.testing.assert_close(got, unet(x, torch.full((6,), 299.0), class_labels=labels).sample, rtol=1e-5, atol=1e-5)
    assert score.event_shape == (1, 8, 8) and not torch.equal(got, score.noise(x, 0.3, (labels + 1) % 3))
    loss = tr.DenoisingLoss(score, drop_cond=0.2, null=torch.tensor(3))
    fit = tr.fit(score, x, cond=labels, loss=loss, steps=3, batch_size=4, seed=0, progress=False, held_out=0.0)
    assert bool(fit.losses.isfinite().all())
    guided = sd.ClassifierFree(fit.score, 2.0, torch.tensor(3))
    back = sd.VP().reverse(guided)
    sol = sd.sample(back, 6, solver=sd.EulerMaruyama(), steps=2, cond=labels, seed=0, event_shape=(1, 8, 8))
    assert sol.stats["nfe"] == 4 and bool(sol.x.isfinite().all())
    tr.save_pretrained(tmp_path, fit.score)
    with pytest.raises(ValueError, match=r"load\(path, net="):
        tr.from_pretrained(tmp_path)
    again = tr.from_pretrained(tmp_path, net=DiffusersUNet(diffusers_unet(4), scale=1000, offset=-1)).score
    assert torch.equal(again.noise(x, 0.3, labels), fit.score.noise(x, 0.3, labels))


def test_a_unet_of_diffusers_without_classes_takes_no_label():
    net = DiffusersUNet(diffusers_unet())
    with pytest.raises(ValueError, match="num_class_embeds"):
        net(torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.zeros(2).long())
    with pytest.raises(TypeError, match=r"diffusers.UNet2DModel, got str"):
        DiffusersUNet("google/ddpm-cat-256")
    assert DiffusersUNet(nn.Linear(1, 1)).event_shape is None
