"""Small models of real diffusers classes: every attention pattern that `normrope.diffusers` serves, random everywhere.

A row of `ZOO` makes one model and the inputs of a call. Sizes are odd on purpose: a length, head or batch taken for
another does not go unnoticed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import diffusers
import torch
from diffusers.models.transformers import transformer_flux2
from torch.overrides import TorchFunctionMode

BATCH, TEXT = 2, 5
HEADS, DIM = 3, 16
AXES = (4, 6, 6)  # channels of each rope axis, together DIM
FRAMES, HEIGHT, WIDTH = 3, 2, 4  # of the latent after patching
IMAGE = FRAMES * HEIGHT * WIDTH


@dataclasses.dataclass(frozen=True)
class Row:
    """One model of the zoo."""

    build: Callable[[], torch.nn.Module]
    inputs: Callable[[], dict]
    patched: int  # attention modules that the fused step reaches
    skipped: int = 0  # and those that it does not


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _ids(tokens: int, axes: int, start: int = 0) -> torch.Tensor:
    return torch.arange(start, start + tokens)[:, None] * torch.arange(1, axes + 1)[None] % 7


def _timestep(*, scale: float = 1.0) -> torch.Tensor:
    """Times that bfloat16 has, and their thousandfold too: an inexact one would be the largest error of all."""
    return torch.tensor([0.25, 0.5], dtype=torch.float64) * scale


def _flux(name: str = "FluxTransformer2DModel", **options: object) -> torch.nn.Module:
    """FLUX.1, and the many models that are built like it."""
    return getattr(diffusers, name)(
        **{
            "in_channels": 8,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": DIM,
            "num_attention_heads": HEADS,
            "joint_attention_dim": 12,
            "axes_dims_rope": AXES,
        }
        | options
    )


def _flux_inputs(**more: object) -> dict:
    return {
        "hidden_states": _noise(BATCH, IMAGE, 8),
        "encoder_hidden_states": _noise(BATCH, TEXT, 12),
        "timestep": _timestep(),
        "img_ids": _ids(IMAGE, 3, 1),
        "txt_ids": _ids(TEXT, 3),
        **more,
    }


def _text_mask(dtype: torch.dtype = torch.bool) -> torch.Tensor:
    """The second text of the batch is shorter."""
    return torch.arange(TEXT).lt(torch.tensor([[TEXT], [3]])).to(dtype)


def _chroma_inputs() -> dict:
    return _flux_inputs(attention_mask=torch.cat([_text_mask(), torch.ones(BATCH, IMAGE, dtype=torch.bool)], dim=1))


def _fibo_inputs() -> dict:
    return _flux_inputs(text_encoder_layers=[_noise(BATCH, TEXT, 7) for _ in range(2)])


def _flux2() -> torch.nn.Module:
    return _flux("Flux2Transformer2DModel", timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4))


def _flux2_inputs() -> dict:
    guidance = torch.ones(BATCH, dtype=torch.float64)
    return _flux_inputs(guidance=guidance, img_ids=_ids(IMAGE, 4, 1), txt_ids=_ids(TEXT, 4))


def _qwen() -> torch.nn.Module:
    return diffusers.QwenImageTransformer2DModel(
        in_channels=8,
        out_channels=2,
        num_layers=2,
        attention_head_dim=DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=12,
        axes_dims_rope=AXES,
    )


def _qwen_inputs() -> dict:
    return {
        "hidden_states": _noise(BATCH, IMAGE, 8),
        "encoder_hidden_states": _noise(BATCH, TEXT, 12),
        "encoder_hidden_states_mask": _text_mask(),
        "timestep": _timestep(),
        "img_shapes": [[(FRAMES, HEIGHT, WIDTH)]] * BATCH,
    }


def _hunyuan(name: str = "HunyuanVideoTransformer3DModel", **options: object) -> torch.nn.Module:
    return getattr(diffusers, name)(
        **{
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_refiner_layers": 1,
            "attention_head_dim": DIM,
            "num_attention_heads": HEADS,
            "text_embed_dim": 12,
            "rope_axes_dim": AXES,
        }
        | options
    )


def _hunyuan_video_inputs(**more: object) -> dict:
    return {
        "hidden_states": _noise(BATCH, 4, FRAMES, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": _noise(BATCH, TEXT, 12),
        "encoder_attention_mask": _text_mask(torch.long),
        "pooled_projections": _noise(BATCH, 10),
        "timestep": torch.tensor([250, 500]),
        "guidance": torch.full((BATCH,), 6.0, dtype=torch.float64),
        **more,
    }


def _hunyuan_video15_inputs() -> dict:
    inputs = _hunyuan_video_inputs(
        encoder_hidden_states_2=_noise(BATCH, 4, 11),
        encoder_attention_mask_2=torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]),
        image_embeds=_noise(BATCH, 3, 9),
        timestep=_timestep(scale=1000),
    )
    return {k: v for k, v in inputs.items() if k not in ("pooled_projections", "guidance")}


def _hunyuan_image_inputs() -> dict:
    return {
        "hidden_states": _noise(BATCH, 4, 4, 6),
        "encoder_hidden_states": _noise(BATCH, TEXT, 12),
        "encoder_attention_mask": _text_mask(torch.long),
        "timestep": _timestep(scale=1000),
    }


def _sd3(**options: object) -> torch.nn.Module:
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=12,
        caption_projection_dim=HEADS * DIM,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
        **options,
    )


def _sd3_inputs() -> dict:
    return {
        "hidden_states": _noise(BATCH, 4, 6, 8),
        "encoder_hidden_states": _noise(BATCH, TEXT, 12),
        "pooled_projections": _noise(BATCH, 10),
        "timestep": torch.tensor([250, 500]),
    }


def _cogvideox(*, rope: bool = True) -> torch.nn.Module:
    return diffusers.CogVideoXTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=DIM,
        num_attention_heads=HEADS,
        text_embed_dim=12,
        time_embed_dim=8,
        sample_width=2 * WIDTH,
        sample_height=2 * HEIGHT,
        sample_frames=9,
        max_text_seq_length=TEXT,
        use_rotary_positional_embeddings=rope,
    )


def _cogvideox_inputs(*, rope: bool = True) -> dict:
    inputs = {
        "hidden_states": _noise(BATCH, FRAMES, 4, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": _noise(BATCH, TEXT, 12),
        "timestep": torch.tensor([250, 500]),
    }
    if rope:
        angles = torch.rand(IMAGE, DIM // 2) * 6
        inputs["image_rotary_emb"] = tuple(f(angles).repeat_interleave(2, 1) for f in (torch.cos, torch.sin))
    return inputs


def _wan(name: str = "WanTransformer3DModel", **options: object) -> torch.nn.Module:
    return getattr(diffusers, name)(
        **{
            "num_attention_heads": HEADS,
            "attention_head_dim": DIM,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 12,
            "freq_dim": 16,
            "ffn_dim": 24,
            "num_layers": 2,
            "rope_max_seq_len": 16,
        }
        | options
    )


def _wan_inputs(**more: torch.Tensor) -> dict:
    return {
        "hidden_states": _noise(BATCH, 4, FRAMES, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": _noise(BATCH, TEXT, 12),
        "timestep": torch.tensor([250, 500]),
        **more,
    }


def _wan_vace_inputs() -> dict:
    return _wan_inputs(control_hidden_states=_noise(BATCH, 5, FRAMES, 2 * HEIGHT, 2 * WIDTH))


def _wan_image_inputs() -> dict:
    # The processor takes the last 512 tokens for the text.
    return _wan_inputs(encoder_hidden_states=_noise(BATCH, 512, 12), encoder_hidden_states_image=_noise(BATCH, 3, 9))


def _flux2_kv() -> torch.nn.Module:
    """FLUX.2 with the processors that its pipeline with a cache sets."""
    model = _flux2()
    model.transformer_blocks[0].attn.set_processor(transformer_flux2.Flux2KVAttnProcessor())
    model.single_transformer_blocks[0].attn.set_processor(transformer_flux2.Flux2KVParallelSelfAttnProcessor())
    return model


def _wan_animate() -> torch.nn.Module:
    return _wan(
        "WanAnimateTransformer3DModel",
        **_WITH_IMAGE,
        latent_channels=4,
        in_channels=12,
        motion_encoder_channel_sizes={"4": 8, "8": 8},
        motion_encoder_size=8,
        motion_style_dim=6,
        motion_dim=5,
        motion_encoder_dim=6,
        face_encoder_hidden_dim=12,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )


def _wan_animate_inputs() -> dict:
    return _wan_image_inputs() | {
        "hidden_states": _noise(BATCH, 12, FRAMES, 2 * HEIGHT, 2 * WIDTH),
        "pose_hidden_states": _noise(BATCH, 4, FRAMES - 1, 2 * HEIGHT, 2 * WIDTH),
        "face_pixel_values": _noise(BATCH, 3, 5, 8, 8),
    }


def _motif(**options: object) -> torch.nn.Module:
    return diffusers.MotifVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=DIM,
        num_attention_heads=HEADS,
        text_embed_dim=12,
        rope_axes_dim=AXES,
        **options,
    )


def _motif_inputs() -> dict:
    return {
        "hidden_states": _noise(BATCH, 4, FRAMES, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": _noise(BATCH, TEXT, 12),
        "encoder_attention_mask": _text_mask(torch.long),
        "timestep": torch.tensor([250, 500]),
    }


def _easyanimate() -> torch.nn.Module:
    return diffusers.EasyAnimateTransformer3DModel(
        in_channels=4,
        out_channels=4,
        patch_size=2,
        num_layers=2,
        mmdit_layers=1,
        attention_head_dim=DIM,
        num_attention_heads=HEADS,
        text_embed_dim=12,
        time_embed_dim=8,
        sample_width=2 * WIDTH,
        sample_height=2 * HEIGHT,
        resize_inpaint_mask_directly=False,
    )


def _easyanimate_inputs() -> dict:
    return {
        "hidden_states": _noise(BATCH, 4, FRAMES, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": _noise(BATCH, TEXT, 12),
        "timestep": torch.tensor([250, 500]),
    }


def _auraflow() -> torch.nn.Module:
    return diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=12,
        caption_projection_dim=HEADS * DIM,
        pos_embed_max_size=16,
    )


def _auraflow_inputs() -> dict:
    return {
        "hidden_states": _noise(BATCH, 4, 6, 8),
        "encoder_hidden_states": _noise(BATCH, TEXT, 12),
        "timestep": _timestep(),
    }


def _cogview4(name: str = "CogView4Transformer2DModel", **options: object) -> torch.nn.Module:
    return getattr(diffusers, name)(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=DIM,
        num_attention_heads=HEADS,
        text_embed_dim=12,
        time_embed_dim=8,
        condition_dim=4,
        **options,
    )


def _cogview4_inputs(**more: object) -> dict:
    size = torch.tensor([[64.0, 64.0]] * BATCH)
    return {
        "hidden_states": _noise(BATCH, 4, 6, 8),
        "encoder_hidden_states": _noise(BATCH, TEXT, 12),
        "timestep": torch.tensor([250, 500]),
        "target_size": size,
        "crop_coords": torch.zeros_like(size),
        **more,
    }


def _glm_inputs() -> dict:
    return _cogview4_inputs(
        prior_token_id=torch.arange(12).expand(BATCH, -1) % 7,
        prior_token_drop=torch.zeros(BATCH, 12, dtype=torch.bool),
    )


def _ltx() -> torch.nn.Module:
    return diffusers.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=DIM,
        num_attention_heads=HEADS,
        cross_attention_dim=HEADS * DIM,
        caption_channels=12,
    )


def _ltx_inputs() -> dict:
    return {
        "hidden_states": _noise(BATCH, IMAGE, 4),
        "encoder_hidden_states": _noise(BATCH, TEXT, 12),
        "encoder_attention_mask": _text_mask(torch.long),
        "timestep": torch.tensor([250, 500]),
        "num_frames": FRAMES,
        "height": HEIGHT,
        "width": WIDTH,
    }


def _cosmos() -> torch.nn.Module:
    return diffusers.CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=DIM,
        num_attention_heads=HEADS,
        text_embed_dim=12,
        adaln_lora_dim=4,
        max_size=(4, 8, 8),
        concat_padding_mask=False,
    )


def _cosmos_inputs() -> dict:
    return {
        "hidden_states": _noise(BATCH, 4, FRAMES, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": _noise(BATCH, TEXT, 12),
        "timestep": _timestep(),
    }


def _hunyuan_dit() -> torch.nn.Module:
    return diffusers.HunyuanDiT2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=DIM,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=HEADS * DIM,
        num_layers=2,
        cross_attention_dim=12,
        cross_attention_dim_t5=16,
        pooled_projection_dim=6,
        text_len=TEXT,
        text_len_t5=4,
    )


def _hunyuan_dit_inputs() -> dict:
    angles = torch.rand(16, DIM // 2) * 6
    return {
        "hidden_states": _noise(BATCH, 4, 8, 8),
        "encoder_hidden_states": _noise(BATCH, TEXT, 12),
        "text_embedding_mask": _text_mask(torch.long),
        "encoder_hidden_states_t5": _noise(BATCH, 4, 16),
        "text_embedding_mask_t5": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]),
        "image_meta_size": torch.tensor([[64.0, 64.0, 64.0, 64.0, 0.0, 0.0]] * BATCH),
        "style": torch.zeros(BATCH, dtype=torch.long),
        "timestep": _timestep(scale=1000),
        "image_rotary_emb": tuple(f(angles).repeat_interleave(2, 1) for f in (torch.cos, torch.sin)),
    }


class _ZImage(torch.nn.Module):
    """Z-Image with one tensor for its list of images."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, t: torch.Tensor, captions: list, return_dict: bool = True) -> object:
        images, captions = list(x.unbind()), [captions[0], captions[1][:3]]
        (result,) = self.model(images, t, captions, return_dict=False)
        result = torch.stack(result)
        return SimpleNamespace(sample=result) if return_dict else (result,)


def _z_image() -> torch.nn.Module:
    return _ZImage(
        diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=HEADS * DIM,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=HEADS,
            n_kv_heads=HEADS,
            cap_feat_dim=12,
            axes_dims=list(AXES),
            axes_lens=[64, 16, 16],
        )
    )


def _z_image_inputs() -> dict:
    return {
        "x": _noise(BATCH, 4, 1, 2 * HEIGHT, 2 * WIDTH),
        "t": _timestep(),
        "captions": [_noise(TEXT, 12) for _ in range(BATCH)],
    }


def _lumina2() -> torch.nn.Module:
    return diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        hidden_size=4 * DIM,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=8,
        axes_dim_rope=AXES,
        axes_lens=(16, 16, 16),
        cap_feat_dim=12,
    )


def _lumina2_inputs() -> dict:
    return {
        "hidden_states": _noise(BATCH, 4, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": _noise(BATCH, TEXT, 12),
        "encoder_attention_mask": _text_mask(),
        "timestep": _timestep(),
    }


_WITH_IMAGE = {"image_dim": 9, "added_kv_proj_dim": HEADS * DIM}

ZOO: dict[str, Row] = {
    "flux": Row(
        lambda: _flux(pooled_projection_dim=10), lambda: _flux_inputs(pooled_projections=_noise(BATCH, 10)), patched=2
    ),
    "chroma": Row(
        lambda: _flux(
            "ChromaTransformer2DModel", approximator_num_channels=8, approximator_hidden_dim=8, approximator_layers=1
        ),
        _chroma_inputs,
        patched=2,
    ),
    "bria": Row(lambda: _flux("BriaTransformer2DModel"), _flux_inputs, patched=2),
    "bria-fibo": Row(lambda: _flux("BriaFiboTransformer2DModel", text_encoder_dim=7), _fibo_inputs, patched=2),
    "longcat-image": Row(lambda: _flux("LongCatImageTransformer2DModel"), _flux_inputs, patched=2),
    "ovis-image": Row(lambda: _flux("OvisImageTransformer2DModel", out_channels=8), _flux_inputs, patched=2),
    "flux2": Row(_flux2, _flux2_inputs, patched=2),
    "flux2-kv": Row(_flux2_kv, _flux2_inputs, patched=2),
    "qwen-image": Row(_qwen, _qwen_inputs, patched=2),
    "hunyuan-video": Row(
        lambda: _hunyuan(num_single_layers=1, pooled_projection_dim=10), _hunyuan_video_inputs, patched=2, skipped=1
    ),
    "hunyuan-video-1.5": Row(
        lambda: _hunyuan("HunyuanVideo15Transformer3DModel", text_embed_2_dim=11, image_embed_dim=9, patch_size=2),
        _hunyuan_video15_inputs,
        patched=1,
        skipped=1,
    ),
    "hunyuan-image": Row(
        lambda: _hunyuan(
            "HunyuanImageTransformer2DModel", num_single_layers=1, patch_size=(1, 1), rope_axes_dim=(8, 8)
        ),
        _hunyuan_image_inputs,
        patched=2,
        skipped=1,
    ),
    "sd3.5": Row(lambda: _sd3(qk_norm="rms_norm", dual_attention_layers=(0,)), _sd3_inputs, patched=3),
    "sd3-medium": Row(_sd3, _sd3_inputs, patched=0, skipped=2),
    "cogvideox-5b": Row(_cogvideox, _cogvideox_inputs, patched=2),
    "cogvideox-2b": Row(lambda: _cogvideox(rope=False), lambda: _cogvideox_inputs(rope=False), patched=2),
    "wan-t2v": Row(_wan, _wan_inputs, patched=4),
    "wan-i2v": Row(lambda: _wan(**_WITH_IMAGE), _wan_image_inputs, patched=4),
    "wan-vace": Row(
        lambda: _wan("WanVACETransformer3DModel", vace_layers=[0, 1], vace_in_channels=5), _wan_vace_inputs, patched=8
    ),
    "chronoedit": Row(lambda: _wan("ChronoEditTransformer3DModel", **_WITH_IMAGE), _wan_image_inputs, patched=4),
    "wan-animate": Row(_wan_animate, _wan_animate_inputs, patched=4, skipped=1),
    "skyreels-v2": Row(lambda: _wan("SkyReelsV2Transformer3DModel"), _wan_inputs, patched=4),
    "skyreels-v2-i2v": Row(lambda: _wan("SkyReelsV2Transformer3DModel", **_WITH_IMAGE), _wan_image_inputs, patched=4),
    "motif-video": Row(_motif, _motif_inputs, patched=2),
    "easyanimate": Row(_easyanimate, _easyanimate_inputs, patched=2),
    "auraflow": Row(_auraflow, _auraflow_inputs, patched=2),
    "cogview4": Row(
        lambda: _cogview4(rope_axes_dim=(16, 16), pos_embed_max_size=8, sample_size=8),
        lambda: _cogview4_inputs(original_size=torch.tensor([[64.0, 64.0]] * BATCH)),
        patched=2,
    ),
    "glm-image": Row(
        lambda: _cogview4("GlmImageTransformer2DModel", prior_vq_quantizer_codebook_size=7), _glm_inputs, patched=2
    ),
    "ltx-video": Row(_ltx, _ltx_inputs, patched=4),
    "cosmos": Row(_cosmos, _cosmos_inputs, patched=2),
    "hunyuan-dit": Row(_hunyuan_dit, _hunyuan_dit_inputs, patched=4),
    "z-image": Row(_z_image, _z_image_inputs, patched=3),
    "lumina2": Row(_lumina2, _lumina2_inputs, patched=3),
}


def make(name: str, seed: int = 0) -> tuple[torch.nn.Module, dict]:
    """A float64 model of the zoo in training mode and the inputs of a call; equal for equal seeds.

    Every parameter is random, norms' weights about 1, so that none is where a mistake would not show.
    """
    torch.manual_seed(seed)
    row = ZOO[name]
    model = row.build().double().train()
    for parameter_name, parameter in model.named_parameters():
        norm_weight = parameter.ndim == 1 and parameter_name.endswith("weight")
        scale = 0.3 if parameter.ndim == 1 else 1.2 / parameter[0].numel() ** 0.5
        parameter.data = torch.randn_like(parameter) * scale + norm_weight
    return model, row.inputs()


def to(value: object, dtype: torch.dtype) -> object:
    """Inputs with their float64 tensors in another dtype, as leaves that want gradients where they are activations."""
    if isinstance(value, dict):
        return {name: to(item, dtype) for name, item in value.items()}
    if isinstance(value, list):
        return [to(item, dtype) for item in value]
    if not (isinstance(value, torch.Tensor) and value.dtype == torch.float64):
        return value
    return value.to(dtype).detach().clone().requires_grad_(value.ndim > 1)


class Float32IsFloat64(TorchFunctionMode):
    """Within it code that asks for float32 gets float64: models that have float32 inside compute the truth, too."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        if func is torch.Tensor.float:
            return args[0].double()

        def swap(x: object) -> object:
            wide = {torch.float32: torch.float64, torch.complex64: torch.complex128}
            return wide.get(x, x) if isinstance(x, torch.dtype) else x

        return func(*map(swap, args), **{name: swap(item) for name, item in (kwargs or {}).items()})
