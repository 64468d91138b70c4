"""The workloads of the forecast bench: architectures of three libraries and small ones of our own, weights random, nothing downloaded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import _models as own
import torch
from torch import Tensor, nn, optim

Inputs = tuple[Tensor, ...] | dict[str, Tensor]

BF16 = torch.bfloat16


@dataclass(frozen=True)
class Row:
    """One step to forecast and to measure."""

    name: str
    factory: Callable[[], nn.Module]
    """Makes the model, in train mode; imports its library when called."""
    inputs: Callable[[], Inputs]
    train: bool = False
    optimizer: Callable[[Iterable[nn.Parameter]], optim.Optimizer] | None = None
    autocast: torch.dtype | None = None
    accumulate: int = 1
    library: str = ""
    """Where the architecture comes from; the only library that a process about this row imports, with those that it imports itself."""

    def make(self) -> tuple[nn.Module, Inputs]:
        """The model in the row's mode, and its inputs; the same numbers every time."""
        torch.manual_seed(0)
        model = self.factory()
        return model.train(self.train), self.inputs()


def image(batch: int, side: int, channels: int = 3, last: bool = False) -> Callable[[], Inputs]:
    layout = torch.channels_last if last else torch.contiguous_format
    return lambda: (torch.randn(batch, channels, side, side).contiguous(memory_format=layout),)


def signal(*shape: int) -> Callable[[], Inputs]:
    return lambda: (torch.randn(*shape),)


def tokens(batch: int, length: int, words: int, **extra: Callable[[], Tensor]) -> Callable[[], Inputs]:
    return lambda: {"input_ids": torch.randint(words, (batch, length)), **{name: make() for name, make in extra.items()}}


def tv(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    """A torchvision architecture by name, in torchvision's own defaults."""

    def factory() -> nn.Module:
        from _torchvision import torchvision

        return torchvision.models.get_model(name, weights=None, **arguments)

    return factory


def tm(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    """A timm architecture by name."""

    def factory() -> nn.Module:
        import _torchvision  # noqa: F401
        import timm

        return timm.create_model(name, pretrained=False, **arguments)

    return factory


def hf(model: str, config: str, **arguments: Any) -> Callable[[], nn.Module]:
    """A transformers architecture from its configuration."""

    def factory() -> nn.Module:
        import _torchvision  # noqa: F401
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**arguments))

    return factory


def channels_last(factory: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: factory().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def frozen_body(factory: Callable[[], nn.Module], head: str) -> Callable[[], nn.Module]:
    """The model with only the parameters under `head` left to train."""

    def make() -> nn.Module:
        model = factory()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(head))
        return model

    return make


sgd = functools.partial(optim.SGD, lr=1e-3)
momentum = functools.partial(optim.SGD, lr=1e-3, momentum=0.9)
adam = functools.partial(optim.Adam, lr=1e-4)
adamw = functools.partial(optim.AdamW, lr=1e-4)
rmsprop = functools.partial(optim.RMSprop, lr=1e-4)
adagrad = functools.partial(optim.Adagrad, lr=1e-3)

# Fewer and narrower layers than the published sizes: the same operators in a fraction of the time.
convnext_hf = hf("ConvNextForImageClassification", "ConvNextConfig", depths=[2, 2, 4, 2], hidden_sizes=[64, 128, 256, 512])
vit_hf = hf(
    "ViTForImageClassification", "ViTConfig", hidden_size=384, intermediate_size=1536, num_attention_heads=6, num_hidden_layers=4
)  # fmt: skip
segformer = hf("SegformerForSemanticSegmentation", "SegformerConfig", num_labels=19)
bert = hf(
    "BertModel", "BertConfig", hidden_size=512, intermediate_size=2048, num_attention_heads=8, num_hidden_layers=4, vocab_size=16000
)  # fmt: skip
distilbert = hf(
    "DistilBertForSequenceClassification", "DistilBertConfig", dim=512, hidden_dim=2048, n_heads=8, n_layers=3, vocab_size=16000
)
gpt2 = hf("GPT2LMHeadModel", "GPT2Config", n_embd=384, n_head=6, n_layer=4, vocab_size=16000, use_cache=False)
t5 = hf("T5ForConditionalGeneration", "T5Config", num_layers=3, d_model=256, d_ff=1024, num_heads=4, vocab_size=8000, use_cache=False)
llama = hf(
    "LlamaForCausalLM", "LlamaConfig", hidden_size=384, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=6,
    num_key_value_heads=2, vocab_size=8000, use_cache=False,
)  # fmt: skip
wav2vec2 = hf(
    "Wav2Vec2Model", "Wav2Vec2Config", hidden_size=384, intermediate_size=1536, num_attention_heads=6, num_hidden_layers=3,
    apply_spec_augment=False, layerdrop=0.0,
)  # fmt: skip
whisper = hf(
    "WhisperForConditionalGeneration", "WhisperConfig", d_model=384, encoder_layers=2, decoder_layers=2, encoder_attention_heads=6,
    decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536, use_cache=False, vocab_size=51865,
)  # fmt: skip

t5_inputs = tokens(4, 128, 8000, decoder_input_ids=lambda: torch.randint(8000, (4, 64)))
speech = lambda: {"input_features": torch.randn(1, 80, 3000), "decoder_input_ids": torch.randint(51865, (1, 32))}  # noqa: E731
noisy = lambda: (torch.randn(4, 4, 32, 32), torch.rand(4, 1))  # noqa: E731


def infer(name: str, factory: Callable[[], nn.Module], inputs: Callable[[], Inputs], **more: Any) -> Row:
    return Row(f"{name}-infer", factory, inputs, **more)


def train(name: str, factory: Callable[[], nn.Module], inputs: Callable[[], Inputs], optimizer: Any = adamw, **more: Any) -> Row:
    return Row(f"{name}-train", factory, inputs, True, optimizer, **more)


TORCHVISION = (
    infer("resnet18-b1", tv("resnet18"), image(1, 224)),
    train("resnet18-b16-momentum", tv("resnet18"), image(16, 128), momentum),
    infer("resnet50-b8-last", channels_last(tv("resnet50")), image(8, 224, last=True)),
    train("resnet50-b4-bf16", tv("resnet50"), image(4, 160), sgd, autocast=BF16),
    train("resnet50-b4-frozen", frozen_body(tv("resnet50"), "fc"), image(4, 224), momentum),
    train("alexnet-b16-sgd", tv("alexnet", num_classes=100), image(16, 224), sgd),
    infer("mobilenet_v2-b8", tv("mobilenet_v2"), image(8, 224)),
    train("mobilenet_v2-b4-last", channels_last(tv("mobilenet_v2")), image(4, 224, last=True), momentum),
    infer("mobilenet_v3_large-b4-bf16", tv("mobilenet_v3_large"), image(4, 224), autocast=BF16),
    train("mobilenet_v3_small-b8-rmsprop", tv("mobilenet_v3_small"), image(8, 224), rmsprop),
    train("efficientnet_b0-b4-adam", tv("efficientnet_b0"), image(4, 160), adam),
    infer("densenet121-b4", tv("densenet121"), image(4, 224)),
    train("convnext_tiny-b2", tv("convnext_tiny"), image(2, 160)),
    infer("regnet_y_400mf-b8", tv("regnet_y_400mf"), image(8, 224)),
    train("regnet_x_400mf-b4-adagrad", tv("regnet_x_400mf"), image(4, 224), adagrad),
    train("shufflenet_v2-b8-adam", tv("shufflenet_v2_x1_0"), image(8, 224), adam),
    train("googlenet-b4-aux", tv("googlenet", init_weights=False, aux_logits=True), image(4, 160)),
    infer("inception_v3-b2", tv("inception_v3", init_weights=False, aux_logits=True), image(2, 299)),
    infer("squeezenet-b16", tv("squeezenet1_1"), image(16, 224)),
    train("deeplabv3_mobilenet-b2", tv("deeplabv3_mobilenet_v3_large", weights_backbone=None), image(2, 192), momentum),
    infer("swin_t-b2", tv("swin_t"), image(2, 224)),
)

TIMM = (
    infer("resnetv2_50-b2", tm("resnetv2_50"), image(2, 224)),
    train("nfnet_l0-b2", tm("nfnet_l0"), image(2, 160), momentum),
    infer("edgenext_small-b4", tm("edgenext_small"), image(4, 256)),
    train("repvgg_a0-b4-sgd", tm("repvgg_a0"), image(4, 160), sgd),
    infer("hrnet_w18_small-b2", tm("hrnet_w18_small"), image(2, 224)),
    train("ghostnet-b8-adam", tm("ghostnet_100"), image(8, 160), adam),
    train("mixer_s16-b4-sgd", tm("mixer_s16_224"), image(4, 224), sgd),
    train("xcit_nano-b2", tm("xcit_nano_12_p16_224"), image(2, 224)),
    infer("deit_tiny-b4-bf16", tm("deit_tiny_patch16_224"), image(4, 224), autocast=BF16),
)

TRANSFORMERS = (
    infer("convnext_hf-b2", convnext_hf, image(2, 224)),
    train("vit_hf-b4-bf16", vit_hf, image(4, 224), autocast=BF16),
    infer("segformer-b2", segformer, image(2, 256)),
    infer("bert-b8", bert, tokens(8, 128, 16000)),
    train("bert-b2-bf16-momentum", bert, tokens(2, 256, 16000), momentum, autocast=BF16),
    train("distilbert-b8-adagrad", distilbert, tokens(8, 128, 16000), adagrad),
    infer("gpt2-b2-bf16", gpt2, tokens(2, 256, 16000), autocast=BF16),
    train("gpt2-b2", gpt2, tokens(2, 128, 16000)),
    train("t5-b4-accumulate", t5, t5_inputs, accumulate=2),
    infer("llama-b4", llama, tokens(4, 256, 8000)),
    train("llama-b2-bf16", llama, tokens(2, 256, 8000), autocast=BF16),
    train("wav2vec2-b1", wav2vec2, signal(1, 32000)),
    infer("whisper-b1", whisper, speech),
)

OWN = (
    train("perceptron-b256-sgd", own.Perceptron, signal(256, 512), sgd),
    infer("unet-b2", own.UNet, image(2, 192)),
    train("unet-b1-adam", own.UNet, image(1, 192), adam),
    train("unet-b1-bf16", own.UNet, image(1, 128), adam, autocast=BF16),
    train("instance_unet-b2", own.InstanceUNet, image(2, 192)),
    train("tcn-b8", own.TCN, signal(8, 16, 2048)),
    infer("tcn-b16", own.TCN, signal(16, 16, 2048)),
    train("lstm-b32-adam", own.Tagger, lambda: (torch.randint(5000, (32, 64)),), adam),
    infer("gru-b32", functools.partial(own.Tagger, nn.GRU), lambda: (torch.randint(5000, (32, 100)),)),
    train("signal60k-b4-rmsprop", own.LongSignalNet, signal(4, 1, 60000), rmsprop),
    infer("signal60k-b16", own.LongSignalNet, signal(16, 1, 60000)),
    infer("circular-b16", own.CircularNet, signal(16, 4, 4096)),
    train("circular-b8", own.CircularNet, signal(8, 4, 4096)),
    train("spectral-b4-adam", own.SpectralNet, image(4, 128), adam),
    train("volume-b2-momentum", own.VolumeNet, signal(2, 1, 48, 48, 48), momentum),
    infer("squeeze_excite-b4", own.SqueezeExciteNet, image(4, 224)),
    train("squeeze_excite-b1-bf16", own.SqueezeExciteNet, image(1, 160), sgd, autocast=BF16),
    train("decoder-b16-adam", own.Decoder, signal(16, 128), adam),
    infer("decoder-b64", own.Decoder, signal(64, 128)),
    train("diffusion-b4", own.DiffusionBlock, noisy),
)

LIBRARIES = {"torchvision": TORCHVISION, "timm": TIMM, "transformers": TRANSFORMERS, "own": OWN}
WORKLOADS: dict[str, Row] = {row.name: replace(row, library=library) for library, rows in LIBRARIES.items() for row in rows}
"""Every row, by name."""
