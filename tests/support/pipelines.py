"""Tiny random pipelines of the diffusers library, one of each family, built offline; they load as real ones do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler as FlowScheduler
from torch import nn

TOKENS = 16  # that the CLIP encoders take
# Of the pictures of pipelines whose own are large: (height, width).
SIZES = {"flux-dev": (8, 12), "flux-schnell": (8, 8), "lumina2": (64, 96), "z-image": (8, 8), "qwen-image": (16, 24)}


def shaken(network: nn.Module, seed: int = 0) -> Any:
    """`network` in evaluation mode, with weights that make its output depend on all of its parts."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def clip_tokenizer() -> Any:
    """Byte by byte."""
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 324))]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)


def t5_tokenizer(template: str | None = None) -> Any:
    """Letter by letter; `template` makes a chat of it."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(33, 127)]
    tokenizer = transformers.T5TokenizerFast(vocab=pieces, model_max_length=512, extra_ids=0)
    if template:
        tokenizer.chat_template = template
    return tokenizer


def clip_encoder(projects: bool = True, width: int = 32) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=520,
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=width,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
        hidden_act="gelu",
    )
    return (transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel)(config).eval()


def t5_encoder(kind: Any = transformers.T5EncoderModel, config: Any = transformers.T5Config, width: int = 32) -> Any:
    return kind(config(vocab_size=98, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4)).eval()


LANGUAGE = {
    "vocab_size": 98,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 512,
}


def gemma(width: int) -> Any:
    return transformers.Gemma2Model(transformers.Gemma2Config(hidden_size=width, **LANGUAGE)).eval()


def autoencoder(channels: int = 4, **changes: Any) -> Any:
    small = {"block_out_channels": (4,), "layers_per_block": 1, "norm_num_groups": 1}
    settings = small | {"latent_channels": channels, "scaling_factor": 1.5, "shift_factor": 0.1, **changes}
    return diffusers.AutoencoderKL(use_quant_conv=False, use_post_quant_conv=False, **settings).eval()


def ddpm() -> Any:
    network = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return diffusers.DDPMPipeline(unet=shaken(network), scheduler=diffusers.DDPMScheduler())


def dit(num_classes: int = 1000) -> Any:
    network = diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=8,
        num_embeds_ada_norm=num_classes,
    )
    vae = autoencoder(scaling_factor=0.18215, shift_factor=None)
    return diffusers.DiTPipeline(transformer=shaken(network), vae=vae, scheduler=diffusers.DDIMScheduler())


def _unet(**changes: Any) -> Any:
    small = {"block_out_channels": (4, 8), "layers_per_block": 1, "sample_size": 8, "norm_num_groups": 1}
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    return shaken(diffusers.UNet2DConditionModel(down_block_types=down, up_block_types=up, **small | changes))


SD_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def sd(**schedule: Any) -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(shift_factor=None),
        text_encoder=clip_encoder(projects=False),
        tokenizer=clip_tokenizer(),
        unet=_unet(cross_attention_dim=32),
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, **SD_SCHEDULE | schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    network = _unet(
        cross_attention_dim=64,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(shift_factor=None),
        text_encoder=clip_encoder(projects=False),
        text_encoder_2=clip_encoder(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=network,
        scheduler=diffusers.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **SD_SCHEDULE),
        add_watermarker=False,
    )


def sd3() -> Any:
    network = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        out_channels=4,
    )
    return diffusers.StableDiffusion3Pipeline(
        scheduler=FlowScheduler(shift=3.0),
        text_encoder=clip_encoder(),
        text_encoder_2=clip_encoder(),
        text_encoder_3=t5_encoder(width=64),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=t5_tokenizer(),
        transformer=shaken(network),
        vae=autoencoder(),
    )


def flux(guidance: bool = True) -> Any:
    network = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=guidance,
    )
    return diffusers.FluxPipeline(
        scheduler=FlowScheduler(shift=3.0, use_dynamic_shifting=True),
        text_encoder=clip_encoder(projects=False),
        text_encoder_2=t5_encoder(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=t5_tokenizer(),
        transformer=shaken(network),
        vae=autoencoder(),
    )


def sana() -> Any:
    network = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=16,
    )
    blocks = ("ResBlock", "EfficientViTBlock")
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=[1, 1],
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    return diffusers.SanaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=gemma(8),
        vae=vae.eval(),
        transformer=shaken(network),
        scheduler=FlowScheduler(shift=3.0),
    )


def lumina2() -> Any:
    network = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=4,
        num_kv_heads=4,
        multiple_of=16,
        ffn_dim_multiplier=None,
        axes_dim_rope=[4, 2, 2],
        cap_feat_dim=8,
    )
    return diffusers.Lumina2Pipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=gemma(8),
        vae=autoencoder(),
        transformer=shaken(network),
        scheduler=FlowScheduler(shift=6.0),
    )


def auraflow() -> Any:
    network = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pos_embed_max_size=256,
    )
    return diffusers.AuraFlowPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(transformers.UMT5EncoderModel, transformers.UMT5Config),
        vae=autoencoder(shift_factor=None),
        transformer=shaken(network),
        scheduler=FlowScheduler(shift=1.73),
    )


def z_image() -> Any:
    network = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    return diffusers.ZImagePipeline(
        scheduler=FlowScheduler(shift=3.0),
        vae=autoencoder(),
        text_encoder=transformers.Qwen3Model(transformers.Qwen3Config(hidden_size=16, **LANGUAGE)).eval(),
        tokenizer=t5_tokenizer("{{ messages[0]['content'] }}"),
        transformer=shaken(network),
    )


def qwen_image() -> Any:
    network = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1] * 4,
        latents_std=[1.5] * 4,
    )
    return diffusers.QwenImagePipeline(
        scheduler=FlowScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=None,
        tokenizer=None,
        transformer=shaken(network),
    )


BUILDERS: dict[str, Callable[[], Any]] = {
    "ddpm": ddpm,
    "dit": dit,
    "sd": sd,
    "sd-v": lambda: sd(prediction_type="v_prediction"),
    "sdxl": sdxl,
    "sd3": sd3,
    "flux-dev": flux,
    "flux-schnell": lambda: flux(guidance=False),
    "sana": sana,
    "lumina2": lumina2,
    "auraflow": auraflow,
    "z-image": z_image,
    "qwen-image": qwen_image,
}


def save_pipeline(name: str, folder: Path) -> Path:
    """The tiny pipeline `name` in `folder`, always the same."""
    torch.manual_seed(0)
    BUILDERS[name]().save_pretrained(folder / name)
    return folder / name
