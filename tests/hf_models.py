"""Small random models of transformers, saved as folders with their image processors and tokenizers."""

import io
import json
from pathlib import Path

import sentencepiece
import torch
import transformers
from transformers.image_processing_backends import PilBackend

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,."
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_clip(folder: Path, **image_options: object) -> transformers.CLIPModel:
    """CLIP with a short side of 41, bicubic, so that an odd number of pixels is cropped."""
    text = {**SMALL, "vocab_size": 2 * len(LETTERS) + 2, "max_position_embeddings": 16}
    ends = {"bos_token_id": 2 * len(LETTERS), "eos_token_id": 2 * len(LETTERS) + 1}
    config = transformers.CLIPConfig(
        text_config={**text, **ends, "pad_token_id": ends["eos_token_id"]},
        vision_config={**SMALL, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    tokenizer.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 41}, "crop_size": {"height": 32, "width": 32}}
    processor = transformers.CLIPImageProcessorPil(**{**sizes, **image_options})
    return save(transformers.CLIPModel(config), processor, folder)


def write_siglip(folder: Path) -> transformers.SiglipModel:
    """SigLIP with a square of 32, and a tokenizer of SentencePiece as the published ones have."""
    words = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a dog runs over the green field", "a man opens the door of his car"]),
        model_writer=words, vocab_size=50, hard_vocab_limit=False, minloglevel=2, pad_id=-1, bos_id=-1, eos_id=1,
        unk_id=2,
    )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(words.getvalue())
    tokenizer = transformers.SiglipTokenizer(str(folder / "spiece.model"), model_input_names=["input_ids"])
    tokenizer.save_pretrained(folder)
    ends = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1, "projection_size": SMALL["hidden_size"]}
    config = transformers.SiglipConfig(
        text_config={**SMALL, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 12},
        vision_config={**SMALL, "image_size": 32, "patch_size": 8},
    )
    model = transformers.SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-3.0)
    return save(model, transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}), folder)


def write_dinov2(folder: Path) -> transformers.Dinov2Model:
    """DINOv2 for images of 56 pixels that gets images of 42: its positions are interpolated."""
    config = transformers.Dinov2Config(**{**SMALL, "mlp_ratio": 2}, image_size=56, patch_size=14)
    processor = transformers.BitImageProcessorPil(size={"shortest_edge": 48}, crop_size=42)
    return save(transformers.Dinov2Model(config), processor, folder)


def write_vit(folder: Path, *, classifier: bool = False) -> transformers.PreTrainedModel:
    """ViT with its pooler; the one with a classifier has none."""
    config = transformers.ViTConfig(**SMALL, image_size=32, patch_size=8, num_labels=3)
    model = transformers.ViTForImageClassification(config) if classifier else transformers.ViTModel(config)
    return save(model, transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}), folder)


def write_resnet(folder: Path) -> transformers.ResNetForImageClassification:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[1, 1], num_labels=3)
    processor = transformers.ConvNextImageProcessorPil(size={"shortest_edge": 48})
    return save(transformers.ResNetForImageClassification(config), processor, folder)


def write_convnext(folder: Path) -> transformers.ConvNextModel:
    """ConvNeXt whose images are warped to squares, as from 384 pixels on."""
    config = transformers.ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1])
    processor = transformers.ConvNextImageProcessorPil(size={"shortest_edge": 384}, resample=2)
    return save(transformers.ConvNextModel(config), processor, folder)


def write_videomae(folder: Path, *, classifier: bool = False) -> transformers.PreTrainedModel:
    """VideoMAE of 4 frames per clip; with a classifier of videos its mean is normalised before it."""
    sizes = {"image_size": 32, "patch_size": 8, "num_frames": 4, "tubelet_size": 2}
    config = transformers.VideoMAEConfig(**SMALL, **sizes, use_mean_pooling=classifier, num_labels=3)
    kind = transformers.VideoMAEForVideoClassification if classifier else transformers.VideoMAEModel
    processor = transformers.VideoMAEImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    return save(kind(config), processor, folder)


def write_timesformer(folder: Path) -> transformers.TimesformerForVideoClassification:
    config = transformers.TimesformerConfig(**SMALL, image_size=32, patch_size=8, num_frames=4, num_labels=3)
    processor = transformers.VideoMAEImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    return save(transformers.TimesformerForVideoClassification(config), processor, folder)


def save(model: transformers.PreTrainedModel, processor: PilBackend, folder: Path) -> transformers.PreTrainedModel:
    """Save a model and its processor; its weights are enlarged, so that rows of different frames differ clearly."""
    generator = torch.Generator().manual_seed(len(model.state_dict()))
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.ndim > 1:
                value.normal_(0, 1.5 * value[0].numel() ** -0.5, generator=generator)
            elif value.ndim == 1 and "logit" not in key:
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def change_config(folder: Path, **entries: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
