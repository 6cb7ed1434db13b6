# Writes vit.json: python3 vit.py > vit.json
import json, math, torch
torch.set_default_dtype(torch.float64)
def wave(n, shape, base=0.0):
    i = torch.arange(math.prod(shape)).double()
    return (base + 0.5 * torch.sin(0.5 * n + 0.37 * i)).reshape(shape).requires_grad_()
def case(pool):
    B, H, W, C, p, d, heads, depth, hidden = 3, 8, 12, 3, 4, 8, 2, 2, 16
    T = 6 + (pool == "Class")
    names = ([("cls_token", (1, 1, d))] if pool == "Class" else []) + [("pos_embed", (1, T, d)), ("patch_embed.proj.weight", (d, C, p, p)), ("patch_embed.proj.bias", (d,))]
    for b in range(depth):
        names += [(f"blocks.{b}.{n}", s) for n, s in [("norm1.weight", (d,)), ("norm1.bias", (d,)), ("attn.qkv.weight", (3 * d, d)), ("attn.qkv.bias", (3 * d,)), ("attn.proj.weight", (d, d)), ("attn.proj.bias", (d,)), ("norm2.weight", (d,)), ("norm2.bias", (d,)), ("mlp.fc1.weight", (hidden, d)), ("mlp.fc1.bias", (hidden,)), ("mlp.fc2.weight", (d, hidden)), ("mlp.fc2.bias", (d,))]]
    last = "norm" if pool == "Class" else "fc_norm"
    names += [(last + ".weight", (d,)), (last + ".bias", (d,))]
    P = {n: wave(k, s, 1.0 if "norm" in n and n.endswith("weight") else 0.0) for k, (n, s) in enumerate(names)}
    img = torch.sin(0.21 * torch.arange(B * H * W * C).double()).reshape(B, H, W, C).permute(0, 3, 1, 2)
    x = torch.nn.functional.conv2d(img, P["patch_embed.proj.weight"], P["patch_embed.proj.bias"], stride=p).flatten(2).transpose(1, 2)
    if pool == "Class": x = torch.cat([P["cls_token"].expand(B, 1, d), x], 1)
    x = x + P["pos_embed"]
    for b in range(depth):
        q = {n[len(f"blocks.{b}."):]: v for n, v in P.items() if n.startswith(f"blocks.{b}.")}
        layer = torch.nn.TransformerEncoderLayer(d, heads, hidden, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True)
        x = torch.func.functional_call(layer, {"self_attn.in_proj_weight": q["attn.qkv.weight"], "self_attn.in_proj_bias": q["attn.qkv.bias"], "self_attn.out_proj.weight": q["attn.proj.weight"], "self_attn.out_proj.bias": q["attn.proj.bias"], "linear1.weight": q["mlp.fc1.weight"], "linear1.bias": q["mlp.fc1.bias"], "linear2.weight": q["mlp.fc2.weight"], "linear2.bias": q["mlp.fc2.bias"], "norm1.weight": q["norm1.weight"], "norm1.bias": q["norm1.bias"], "norm2.weight": q["norm2.weight"], "norm2.bias": q["norm2.bias"]}, x)
    pooled = x[:, 0] if pool == "Class" else x.mean(1)
    if pool == "Class": pooled = torch.nn.functional.layer_norm(x, (d,), P["norm.weight"], P["norm.bias"], 1e-6)[:, 0]
    else: pooled = torch.nn.functional.layer_norm(pooled, (d,), P["fc_norm.weight"], P["fc_norm.bias"], 1e-6)
    G = torch.cos(0.9 * torch.arange(B * d).double()).reshape(B, d)
    (pooled * G).sum().backward()
    def sums(g):
        i = torch.arange(g.numel()).double()
        return [g.sum().item(), (g.flatten() * torch.cos(0.11 * i)).sum().item()] + g.flatten()[:3].tolist()
    return {"pool": pool, "features": pooled.flatten().tolist(), "gradients": [{"name": n, "shape": list(v.shape), "sums": sums(v.grad)} for n, v in P.items()]}
print(json.dumps({"source": "PyTorch 2.15 in float64: conv2d, nn.TransformerEncoderLayer(norm_first, gelu, eps 1e-6), layer_norm. Images (3, 8, 12, 3) with value i = sin(0.21 i); parameter n has 0.5 sin(0.5 n + 0.37 i), plus 1 for LayerNorm weights; loss = sum features * cos(0.9 i). sums = [sum g, sum g cos(0.11 i), g0, g1, g2]", "cases": [case("Class"), case("Mean")]}))
