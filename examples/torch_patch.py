"""A model of diffusers with the fused step: one line, and it trains as before."""

import diffusers
import torch

import normrope

torch.manual_seed(0)
# A small FLUX.1 with random weights; FluxTransformer2DModel.from_pretrained(..., subfolder="transformer") is as well.
model = diffusers.FluxTransformer2DModel(
    in_channels=16,
    num_layers=2,
    num_single_layers=2,
    attention_head_dim=32,
    num_attention_heads=4,
    joint_attention_dim=64,
    pooled_projection_dim=32,
    axes_dims_rope=(8, 12, 12),
)
height, width, S_text = 12, 16, 24
inputs = {
    "hidden_states": torch.randn(1, height * width, 16),
    "encoder_hidden_states": torch.randn(1, S_text, 64),
    "pooled_projections": torch.randn(1, 32),
    "timestep": torch.tensor([0.5]),
    "img_ids": torch.cartesian_prod(*[torch.arange(n) for n in (1, height, width)]),
    "txt_ids": torch.zeros(S_text, 3),
}
with torch.no_grad():
    before = model(**inputs).sample

print(normrope.diffusers.patch(model))  # which attention modules take the step now, and which do not and why

with torch.no_grad():
    print(f"largest change of the output: {(model(**inputs).sample - before).abs().max():.1e}")
target = torch.randn_like(before)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for i in range(10):
    loss = torch.nn.functional.mse_loss(model(**inputs).sample, target)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if i % 5 == 4:
        print(f"step {i + 1}: loss {loss.item():.4f}")
normrope.diffusers.unpatch(model)  # diffusers' own processors are back
