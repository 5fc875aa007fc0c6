"""The module in an attention of one's own, compiled as a whole, and trained for a few steps."""

import torch
from torch import Tensor, nn

import normrope


class JointAttention(nn.Module):
    """Attention of an image and a text stream, as in FLUX."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv, self.add_qkv = nn.Linear(dim, 3 * dim), nn.Linear(dim, 3 * dim)
        self.norm_rope = normrope.nn.NormRopeConcat(dim // heads, norm="rms_affine", order="text_first")
        self.to_out = nn.Linear(dim, dim)

    def forward(self, image: Tensor, text: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Of [B, S, dim] and [B, S_text, dim]: [B, S_text + S, dim]."""
        streams = [
            part
            for x, project in ((image, self.to_qkv), (text, self.add_qkv))
            for part in project(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        ]
        query, key, value = self.norm_rope(*streams, rope_cos=cos, rope_sin=sin)
        x = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(x.transpose(1, 2).flatten(2))


torch.manual_seed(0)
B, S, S_text, N, D = 1, 96, 32, 4, 32
model = JointAttention(N * D, N)
step = torch.compile(model, fullgraph=True, backend="aot_eager")
angles = torch.polar(torch.ones(S_text + S, D // 2), torch.randn(S_text + S, D // 2))
cos, sin = normrope.tables.from_complex(angles)
image, text, target = torch.randn(B, S, N * D), torch.randn(B, S_text, N * D), torch.randn(B, S_text + S, N * D)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for i in range(20):
    loss = nn.functional.mse_loss(step(image, text, cos, sin), target)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if i % 5 == 4:
        print(f"step {i + 1}: loss {loss.item():.4f}")
