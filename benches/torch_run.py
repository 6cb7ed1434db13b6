"""A whole run in PyTorch, to compare with: views of torchvision, losses of lightly, k-means of faiss, and probes.

    python benches/torch_run.py pcl --data fashion-mnist=data/fashion-mnist --epochs 5 --setting bf16 --out features

Writes the features of both splits and prints one JSON line. Needs torch,
torchvision, lightly, faiss and scikit-learn.
"""

import argparse
import copy
import gzip
import json
import pathlib
import time

import faiss
import numpy as np
import torch
import torchvision.transforms as transforms
from lightly.loss import NTXentLoss
from lightly.models.utils import update_momentum
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import torch_encoder

TEMPERATURE = 0.2


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=["simclr", "moco", "pcl"])
    parser.add_argument("--data", required=True, help="fashion-mnist=FOLDER or cifar10=FOLDER")
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=2, help="epochs before the first prototypes of pcl")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--prototypes", type=int, nargs="+", default=[100, 250, 500])
    parser.add_argument("--queue", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--setting", default="f32", choices=["f32", "bf16", "compile"])
    parser.add_argument("--started", type=float, default=time.time(), help="start of the process, as a Unix time")
    parser.add_argument("--out", required=True, help="folder for the features")
    return parser


def idx(path):
    with gzip.open(path, "rb") as file:
        content = file.read()
    axes = content[3]
    shape = np.frombuffer(content, ">u4", axes, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def load(data):
    """Returns the images, (N, H, W) or (N, H, W, 3), and the labels of both splits."""
    name, folder = data.split("=", 1)
    folder = pathlib.Path(folder)
    if name == "fashion-mnist":
        files = [(f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz") for part in ("train", "t10k")]
        return [(idx(folder / images), idx(folder / labels)) for images, labels in files]
    parts = [[f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]]
    splits = []
    for names in parts:
        rows = np.concatenate([np.fromfile(folder / name, np.uint8).reshape(-1, 3073) for name in names])
        splits.append((rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0]))
    return splits


def first_of_each_class(images, labels, count):
    classes = np.unique(labels)
    rows = np.sort(np.concatenate([np.flatnonzero(labels == c)[: count // len(classes)] for c in classes]))
    return images[rows], labels[rows]


class Views(Dataset):
    """Two random views of each image, and its index."""

    def __init__(self, images):
        self.images = images
        gray = images.ndim == 3
        color = [] if gray else [transforms.RandomGrayscale(0.2)]
        jitter = transforms.ColorJitter(0.4, 0.4) if gray else transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
        self.transform = transforms.Compose([
            transforms.RandomResizedCrop(images.shape[1], scale=(0.2, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([jitter], 0.8),
            *color,
            transforms.ToTensor(),
            transforms.Normalize(*moments(images)),
        ])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        image = Image.fromarray(self.images[i])
        return self.transform(image), self.transform(image), i


def moments(images):
    pixels = images.reshape(-1, 1 if images.ndim == 3 else 3) / 255
    return pixels.mean(0).tolist(), pixels.std(0).tolist()


class Model(torch.nn.Module):
    def __init__(self, options, channels):
        super().__init__()
        settings = argparse.Namespace(net="resnet18", width=options.width, stem="small", size=32)
        net = torch_encoder.encoder(settings)
        net.conv1 = torch.nn.Conv2d(channels, options.width, 3, padding=1, bias=False)
        features = 8 * options.width
        net.fc = torch.nn.Identity()
        self.encoder = net
        self.projector = torch.nn.Sequential(
            torch.nn.Linear(features, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64)
        )

    def forward(self, x):
        return self.projector(self.encoder(x))


class Prototypes:
    """The prototypes of PCL: k-means on the momentum encoder's embeddings, and their concentrations."""

    def __init__(self, embeddings, counts):
        self.levels = [self.level(embeddings, count) for count in counts]

    @staticmethod
    def level(x, count):
        kmeans = faiss.Kmeans(x.shape[1], count, niter=20, spherical=True, seed=0)
        kmeans.train(x)
        _, nearest = kmeans.index.search(x, 1)
        nearest, centers = nearest[:, 0], kmeans.centroids
        distances = np.linalg.norm(x - centers[nearest], axis=1)
        sizes = np.bincount(nearest, minlength=count)
        sums = np.bincount(nearest, distances, minlength=count)
        density = np.where(sizes > 1, sums / np.maximum(sizes, 1) / np.log(sizes + 10), 0)
        density[sizes <= 1] = density.max()
        density = np.clip(density, np.percentile(density, 10), np.percentile(density, 90))
        density = TEMPERATURE * density / density.mean()
        return [torch.from_numpy(a.astype(t)) for a, t in ((centers, "f4"), (nearest, "i8"), (density, "f4"))]

    def loss(self, q, ids):
        q = F.normalize(q.float(), dim=1)
        losses = [F.cross_entropy(q @ c.T / phi, nearest[ids]) for c, nearest, phi in self.levels]
        return sum(losses) / len(losses)


@torch.no_grad()
def embed(net, images, options, autocast):
    mean, std = (torch.tensor(m).view(1, -1, 1, 1) for m in moments(options.train_images))
    was_training, rows = net.training, []
    net.eval()
    for part in np.array_split(images, max(1, len(images) // 512)):
        x = torch.from_numpy(part[..., None] if part.ndim == 3 else part).permute(0, 3, 1, 2) / 255
        with autocast():
            rows.append(net(((x - mean) / std).contiguous(memory_format=torch.channels_last)).float())
    net.train(was_training)
    return torch.cat(rows)


def train(options, images, autocast):
    channels = 1 if images.ndim == 3 else 3
    model = Model(options, channels).to(memory_format=torch.channels_last).train()
    momentum = copy.deepcopy(model)
    if options.setting == "compile":
        model.compile()
        momentum.compile()
    loss = NTXentLoss(TEMPERATURE, memory_bank_size=0 if options.method == "simclr" else (options.queue, 64))
    loader = DataLoader(Views(images), options.batch, shuffle=True, drop_last=True, num_workers=options.threads,
                        persistent_workers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * len(loader))
    prototypes = None
    for epoch in range(options.epochs):
        if options.method == "pcl" and epoch >= options.warm_up:
            embeddings = F.normalize(embed(momentum, images, options, autocast), dim=1)
            prototypes = Prototypes(embeddings.numpy(), options.prototypes)
        for a, b, ids in loader:
            a, b = (x.contiguous(memory_format=torch.channels_last) for x in (a, b))
            optimizer.zero_grad(set_to_none=True)
            with autocast():
                q = model(a)
                if options.method == "simclr":
                    k = model(b)
                else:
                    with torch.no_grad():
                        update_momentum(model, momentum, 0.99)
                        k = momentum(b)
            total = loss(q.float(), k.float())
            if prototypes:
                total = total + prototypes.loss(q, ids)
            total.backward()
            optimizer.step()
            schedule.step()
    return model


def probes(train_x, train_y, test_x, test_y):
    """Returns the accuracies of 20 nearest neighbors and of a linear classifier."""
    a, b = (F.normalize(torch.from_numpy(x), dim=1) for x in (train_x, test_x))
    similarity, nearest = (b @ a.T).topk(20)
    votes = F.one_hot(torch.from_numpy(train_y.astype("i8"))[nearest]) * (similarity / 0.07).exp()[..., None]
    knn = float((votes.sum(1).argmax(1).numpy() == test_y).mean())
    mean, std = train_x.mean(0), train_x.std(0) + 1e-6
    classifier = LogisticRegression(max_iter=200).fit((train_x - mean) / std, train_y)
    return dict(knn=knn, linear=float(classifier.score((test_x - mean) / std, test_y)))


def main():
    options = arguments().parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    torch.manual_seed(0)
    (images, labels), (test_images, test_labels) = load(options.data)
    images, labels = first_of_each_class(images, labels, options.images)
    options.train_images = images

    def autocast():
        return torch.autocast("cpu", torch.bfloat16, enabled=options.setting == "bf16")

    model = train(options, images, autocast)
    features = [embed(model.encoder, x, options, autocast).numpy() for x in (images, test_images)]
    found = probes(features[0], labels, features[1], test_labels)
    seconds = time.time() - options.started
    out = pathlib.Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, x, y in (("train", features[0], labels), ("test", features[1], test_labels)):
        np.save(out / f"{name}.npy", x)
        np.save(out / f"{name}.labels.npy", y)
    print(json.dumps(dict(seconds=seconds, torch=torch.__version__, **found)))


if __name__ == "__main__":
    main()
