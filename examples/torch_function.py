"""The function: LayerNorm, rope and concat of an image and a text stream, forward and backward."""

import torch

import normrope

B, S, S_text, N, D = 1, 1024, 128, 8, 64

# Projections give [B, S, N, D]. Slices of a packed one are read where they are, without a copy.
query, key, value = torch.randn(B, S, 3, N, D, dtype=torch.bfloat16, requires_grad=True).unbind(2)
encoder = torch.randn(B, S_text, 3, N, D, dtype=torch.bfloat16, requires_grad=True)
encoder_query, encoder_key, encoder_value = encoder.unbind(2)
weights = {
    f"norm_{stream}{projection}_{parameter}": torch.randn(D, requires_grad=True)  # float32, beside bfloat16 rows
    for stream in ("", "added_")
    for projection in ("query", "key")
    for parameter in ("weight", "bias")
}
angles = torch.arange(S_text + S)[:, None] / 10000 ** (torch.arange(0, D, 2) / D)
rope_cos, rope_sin = normrope.tables.from_half(angles.cos(), angles.sin(), "interleaved")

query, key, value = normrope.norm_rope_concat(
    *(query, key, value, encoder_query, encoder_key, encoder_value),
    **weights,
    rope_cos=rope_cos,
    rope_sin=rope_sin,
    norm="layer_affine",
    rope="interleaved",
    order="text_first",
)
attention = torch.nn.functional.scaled_dot_product_attention(query, key, value)  # [B, N, S_text + S, D]
attention.float().square().mean().backward()
print(f"attention {list(attention.shape)}, gradient of the packed text projection {list(encoder.grad.shape)}")
print(f"gradient of norm_query_weight: {weights['norm_query_weight'].grad.norm():.3g}")
