"""The sentences on the peak: they name the layers, the reason and the bytes, and the bytes add up."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sash.cost import Block, Bound, Category, Forecast, Moment, Phase, Reason, Timeline, Workload, compare, forecast
from sash.cost._why import reasons
from sash.models import unet
from sash.units import format_bytes, format_seconds


class Tower(nn.Module):
    """Convolution, normalisation and ReLU, six times, and a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(6)))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.body(x))


def nothing_but_a_mean(outputs: torch.Tensor) -> torch.Tensor:
    return outputs.mean()


def cross_entropy(outputs: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, torch.zeros(len(outputs), dtype=torch.long))


def mlp(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 512), activation, nn.Linear(512, 8))


def about(found: tuple[Reason, ...], words: str) -> Reason:
    """The one sentence that has the words."""
    matching = [reason for reason in found if words in reason.text]
    assert len(matching) == 1, [reason.text for reason in found]
    return matching[0]


WORKS = {
    "unet": lambda: Workload(unet(width=8), "1x3x64x64", train=True, optimizer="adamw"),
    "mlp": lambda: Workload(mlp(nn.ReLU()), "16x64", train=True, optimizer="adamw"),
    "classifier": lambda: Workload(nn.Linear(16, 5000), "64x16", train=True, optimizer="momentum", loss=cross_entropy),
    "inference": lambda: Workload(unet(width=8), "1x3x64x64"),
    "bfloat16": lambda: Workload(mlp(nn.GELU()), "16x64", train=True, autocast="bfloat16"),
}


@pytest.mark.parametrize("work", WORKS)
def test_the_first_sentence_is_on_the_whole_peak_and_the_others_add_up_to_it(work):
    found = forecast(WORKS[work]())
    whole, *parts = [reason for reason in found.why() if not reason.seconds]
    assert whole.bytes == found.peak_bytes
    assert f"The peak, {format_bytes(found.peak_bytes)}," in whole.text
    assert sum(part.bytes for part in parts) == found.peak_bytes
    ranked = [part.bytes for part in parts if not part.text.startswith("The rest")]
    assert ranked == sorted(ranked, reverse=True)
    assert 3 <= len(parts) + 1 <= 10
    paths = {layer.path for layer in found.layers}
    assert all(set(reason.modules) <= paths for reason in found.why())


@pytest.mark.parametrize("work", WORKS)
def test_the_last_sentences_are_on_the_step_and_its_slowest_layers(work):
    found = forecast(WORKS[work]())
    whole, *layers = [reason for reason in found.why() if reason.seconds]
    assert whole.seconds == found.wall_s
    assert f"A step takes {format_seconds(found.wall_s)}" in whole.text
    assert 1 <= len(layers) <= 5
    assert [reason.seconds for reason in layers] == sorted((reason.seconds for reason in layers), reverse=True)
    slowest = max(found.layers, key=lambda layer: layer.forward_s + layer.backward_s)
    assert layers[0].seconds == slowest.forward_s + slowest.backward_s
    for reason in layers:
        assert any(f"bound by {bound}" in reason.text for bound in Bound)
        assert "its limit" in reason.text
    assert found.why()[-len(layers) - 1 :] == (whole, *layers)


def test_no_sentence_says_what_to_change():
    texts = " ".join(reason.text for make in WORKS.values() for reason in forecast(make()).why()).lower()
    assert not any(word in texts for word in ("should", "try ", "reduce", "checkpoint", "instead"))


def test_a_tower_keeps_one_map_for_each_backward():
    found = forecast(Workload(Tower(), "2x8x64x64", train=True, loss=nothing_but_a_mean))
    one = 2 * 8 * 64 * 64 * 4
    normalisation = about(found.why(), "saved for batch normalisation, whose backward needs its input again")
    # In which layer's backward the peak comes depends on oneDNN's layouts, so on the processor.
    count = len(normalisation.modules)
    assert count >= 3
    assert normalisation.bytes == count * one
    assert normalisation.modules == tuple(f"body.{number}.0" for number in range(count))
    assert normalisation.text.startswith(f"Outputs of body.0.0 and {count - 1} more like it (body.*.0), {format_bytes(count * one)}, are")
    convolution = about(found.why(), "saved for convolutions, whose backward needs the input for the gradient of the weights")
    assert convolution.bytes == len(convolution.modules) * one
    assert set(convolution.modules) <= {f"body.{number}.2" for number in range(count)}
    assert "Activations are" in found.why()[0].text


def test_max_pooling_keeps_its_input_and_an_index_of_8_bytes_for_each_maximum():
    found = forecast(Workload(unet(width=16), "1x3x128x128", train=True)).why()
    pooling = about(found, "saved for max pooling, whose backward needs its input and, 8 bytes each, the place of every maximum")
    sides = [(16, 128), (32, 64), (64, 32), (128, 16)]
    assert pooling.bytes == sum(channels * (4 * side**2 + 8 * (side // 2) ** 2) for channels, side in sides)


def test_the_state_of_adamw_is_twice_the_parameters_and_momentum_as_much():
    twice = about(forecast(WORKS["mlp"]()).why(), "AdamW's state")
    assert "twice the parameters: two moments for each trained parameter" in twice.text
    model = mlp(nn.ReLU())
    found = forecast(Workload(model, "4x64", train=True, optimizer="momentum"))
    once = about(found.why(), "SGD's state")
    assert "as much as the parameters: momentum keeps one running sum" in once.text
    assert once.bytes == sum(parameter.nbytes for parameter in model.parameters())


def test_gradients_say_how_far_backward_has_come():
    whole = about(forecast(WORKS["mlp"]()).why(), "Gradients of the parameters hold")
    assert whole.text.endswith("one number for each trained parameter, until the step ends.")
    part = about(forecast(Workload(unet(), "1x3x128x128", train=True, optimizer="adamw")).why(), "Gradients of the parameters hold")
    assert part.text.endswith("MiB by now, of the 65.9 MiB they come to when backward ends.")


def test_the_optimizer_names_the_weight_that_its_temporaries_are_for():
    found = forecast(WORKS["mlp"]()).why()
    assert "comes in the optimizer's step" in found[0].text
    assert "the largest here is 512 x 64, as a weight of layer 0 is" in about(found, "The optimizer's step computes in").text


def test_the_loss_over_many_classes_tells_its_copies_apart():
    found = forecast(WORKS["classifier"]()).why()
    loss = about(found, "The loss over 64 x 5000 scores")
    copy = format_bytes(64 * 5000 * 4)
    for words in ("the log-softmax, saved for backward", "the gradient of the log-softmax", "the gradient of the scores"):
        assert f"{words} ({copy})" in loss.text
    assert loss.bytes >= 3 * 64 * 5000 * 4
    assert about(found, "The model's outputs").bytes == 64 * 5000 * 4


def test_inference_names_the_maps_that_wait_and_what_the_kernel_takes():
    found = forecast(Workload(unet(width=16), "1x3x128x128"))
    waiting = about(found.why(), "earlier layers")
    assert "enter.4" in waiting.text
    assert "a skip leads to" in waiting.text
    scratch = found.timeline.levels_of(Category.SCRATCH)[found.timeline.peak_moment]
    assert scratch > 0, "this peak is meant to have kernel scratch"
    inside = about(found.why(), "inside its kernel and gives it back: oneDNN computes in blocked layouts")
    assert inside.bytes == scratch


@pytest.mark.parametrize(
    ("train", "until", "layers"),
    [
        (True, "is kept until autocast ends, and for backward", 2),
        # Without gradients autocast keeps nothing but what the one layer at work reads.
        (False, "lives as long as the layer reads it", 1),
    ],
)
def test_autocast_copies_the_weights_to_16_bits(train, until, layers):
    model = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512))
    # The loss is the largest part, so that training peaks before backward lets go of any copy.
    loss = (lambda outputs: outputs.repeat(1, 16).exp().mean()) if train else None
    found = forecast(Workload(model, "256x512", train=train, autocast="bfloat16", loss=loss))
    copies = about(found.why(), "Autocast's 16-bit copies of the weights of layer 0")
    assert copies.bytes == layers * 2 * (512 * 512 + 512)
    assert len(copies.modules) == layers
    assert f"each weight is cast once and the copy {until}, beside the parameter itself" in copies.text


def test_a_block_of_an_unknown_kind_of_node_is_told_by_the_nodes_name():
    moments = (Moment(Phase.FORWARD, "stem", "aten.frobnicate"), Moment(Phase.BACKWARD, "stem", "aten.frobnicate_backward"))
    block = Block(4096, Category.SAVED, "stem", "aten.frobnicate", 0, 2, "FrobnicateBackward0", (32, 32))
    base = forecast(WORKS["mlp"]())
    told = reasons(Forecast(**{**vars(base), "timeline": Timeline(moments, (block,)), "peak_bytes": 4096}))
    assert told[1].text == "The output of stem, 4.00 KiB, is saved for Frobnicate, whose backward needs its input again."


def test_the_separable_twin_shrinks_parameters_and_grows_what_is_saved_by_its_depthwise_maps():
    works = [Workload(unet(kind), "1x3x64x64", train=True, optimizer="adamw") for kind in ("plain", "separable")]
    plain, twin = (forecast(work) for work in works)
    told = compare(plain, twin)
    assert told[0].text.startswith("The peak shrank")
    parameters = about(told, "Parameters")
    assert parameters.text.startswith(
        "Parameters shrank 8.7 times, from 65.9 MiB to 7.57 MiB (17.3 M to 1.98 M); the optimizer's state shrank 8.7 times"
    )
    saved = about(told, "What is saved for backward grew 1.4 times")
    assert "up.3.convolve.0.depthwise and 17 more like it (*.depthwise) and saved for convolutions" in saved.text
    assert "gone" not in saved.text
    assert len(saved.modules) == 18
    assert all(path.endswith(".depthwise") for path in saved.modules)


def test_four_times_the_batch_is_the_same_tensors_four_times_as_large():
    one, four = (forecast(Workload(Tower(), f"{batch}x8x64x64", train=True)) for batch in (1, 4))
    saved = about(compare(one, four), "saved for backward").text
    assert "that both keep grew 4.0 times" in saved
    assert "new" not in saved
    assert "gone" not in saved


def test_another_activation_names_the_tensor_that_came():
    in_place, gelu = (forecast(Workload(mlp(activation), "512x64", train=True)) for activation in (nn.ReLU(inplace=True), nn.GELU()))
    saved = about(compare(in_place, gelu), "saved for backward").text
    assert "grew 2.0 times, from 1.00 MiB to 2.00 MiB, in 1 and 2 tensors" in saved
    assert "new: 1.00 MiB made by layer 0 and saved for GELU, whose backward needs its input again" in saved


def test_a_forecast_beside_itself_only_says_that_the_peak_stayed():
    found = forecast(WORKS["unet"]())
    assert [reason.text for reason in compare(found, found)] == [f"The peak stayed at {format_bytes(found.peak_bytes)}."]
