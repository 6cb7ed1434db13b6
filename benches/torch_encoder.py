"""The PyTorch peer of `pauc-cli bench`: the same step in both memory layouts. Prints one JSON line per layout.

    python benches/torch_encoder.py --net resnet18 --width 64 --batch 64 --size 32 --threads 2 --form simclr

Needs torch and torchvision, and timm for ConvNeXt and vision transformers. Run it directly before or after
`pauc-cli bench`, and quote the ratio of medians.
"""

import argparse
import copy
import json
import resource
import statistics
import time

import torch
import torchvision
from torch.nn import functional as F


NETWORKS = ["resnet18", "resnet34", "resnet50", "resnet101", "convnext_atto", "convnext_tiny", "vit_tiny", "vit_small"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="resnet18", choices=NETWORKS)
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--stem", default="small", choices=["small", "imagenet"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--form", default="simclr", choices=["simclr", "moco", "inference"])
    parser.add_argument("--layout", default="both", choices=["both", "nchw", "nhwc"])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda:0 and so on")
    parser.add_argument("--precision", default="f32", choices=["f32", "tf32", "bf16"], help="tf32 needs a GPU; bf16: autocast")
    parser.add_argument("--compile", action="store_true", help="compile the network with torch.compile")
    return parser


def narrow(net, width):
    """Scales the channels of every layer by width/64."""

    def scaled(channels):
        return channels * width // 64

    for name, layer in list(net.named_modules()):
        if isinstance(layer, torch.nn.Conv2d):
            inputs = 3 if layer.in_channels == 3 else scaled(layer.in_channels)
            new = torch.nn.Conv2d(inputs, scaled(layer.out_channels), layer.kernel_size, layer.stride, layer.padding, bias=False)
        elif isinstance(layer, torch.nn.BatchNorm2d):
            new = torch.nn.BatchNorm2d(scaled(layer.num_features))
        else:
            continue
        parent, _, last = name.rpartition(".")
        setattr(net.get_submodule(parent), last, new)
    return net


def conv_next(options):
    import timm

    net = timm.create_model(options.net, num_classes=0, patch_size=1 if options.stem == "small" else 4)
    net.head.fc = torch.nn.Sequential(torch.nn.Linear(net.num_features, 512), torch.nn.ReLU(), torch.nn.Linear(512, 128))
    return net


def transformer(options):
    import timm

    patch = 4 if options.stem == "small" else 16
    net = timm.create_model(f"{options.net}_patch16_224", num_classes=0, patch_size=patch, img_size=options.size)
    net.head = torch.nn.Sequential(torch.nn.Linear(net.num_features, 512), torch.nn.ReLU(), torch.nn.Linear(512, 128))
    return net


def encoder(options):
    if options.net.startswith("convnext"):
        return conv_next(options)
    if options.net.startswith("vit"):
        return transformer(options)
    net = getattr(torchvision.models, options.net)()
    features = net.fc.in_features * options.width // 64
    net = narrow(net, options.width)
    if options.stem == "small":
        net.conv1 = torch.nn.Conv2d(3, options.width, 3, padding=1, bias=False)
        net.maxpool = torch.nn.Identity()
    net.fc = torch.nn.Sequential(torch.nn.Linear(features, 512), torch.nn.ReLU(), torch.nn.Linear(512, 128))
    return net


def nt_xent(z, temperature=0.2):
    z = F.normalize(z, dim=1)
    logits = z @ z.T / temperature
    logits.fill_diagonal_(float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(z) // 2))


def measure(options, channels_last):
    """Measures the time of the step given by the options, in one memory layout."""
    on_gpu = options.device != "cpu"
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.precision != "f32"
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = encoder(options).to(options.device).to(memory_format=layout)
    if options.compile:
        net.compile()
    x = torch.randn(options.batch, 3, options.size, options.size).to(options.device).to(memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    keys, queue = copy.deepcopy(net), F.normalize(torch.randn(4096, 128), dim=1).to(options.device)

    def wait():
        if on_gpu:
            torch.cuda.synchronize()

    def autocast():
        return torch.autocast("cuda" if on_gpu else "cpu", torch.bfloat16, enabled=options.precision == "bf16")

    def objective():
        if options.form == "simclr":
            return nt_xent(net(x))
        q = F.normalize(net(x), dim=1)
        with torch.no_grad():
            for slow, fast in zip(keys.parameters(), net.parameters()):
                slow.lerp_(fast, 0.01)
            k = F.normalize(keys(x), dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / 0.2
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))

    def step():
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = objective()
        loss.backward()
        optimizer.step()

    def inference():
        with torch.inference_mode(), autocast():
            net(x)

    work = inference if options.form == "inference" else step
    net.train(options.form != "inference")
    for _ in range(8 if on_gpu else 2):
        work()
    wait()
    times, begun = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - begun < options.seconds:
        start = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - start)
    found = dict(
        torch=torch.__version__,
        **{k: v for k, v in vars(options).items() if k not in ("layout", "seconds")},
        layout="nhwc" if channels_last else "nchw",
        steps=len(times),
        step_ms_median=round(statistics.median(times) * 1e3, 2),
        step_ms_min=round(min(times) * 1e3, 2),
        memory_mib_max=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    )
    if on_gpu:
        found["device_memory_mib_max"] = torch.cuda.max_memory_allocated() >> 20
        torch.cuda.reset_peak_memory_stats()
    return found


if __name__ == "__main__":
    options = arguments().parse_args()
    for channels_last in [False, True]:
        if options.layout in ("both", "nhwc" if channels_last else "nchw"):
            print(json.dumps(measure(options, channels_last)), flush=True)
