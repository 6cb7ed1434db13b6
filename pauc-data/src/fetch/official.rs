//! The URLs of the standard datasets and the checksums of their files.

use super::{RemoteFile, RemoteSet, Unpacked};

/// Bytes per image of CIFAR, without labels.
const CIFAR: u64 = 32 * 32 * 3;
/// The URL of both CIFAR datasets.
const TORONTO: &str = "https://www.cs.toronto.edu/~kriz/";
/// Bytes per image of STL-10.
const STL: u64 = 96 * 96 * 3;

/// Returns the datasets that can be downloaded.
///
/// The checksums of CIFAR-10 and CIFAR-100 are from their authors' page, those of Fashion-MNIST from its
/// README, and those of MNIST and STL-10 from torchvision.
pub fn official() -> Vec<RemoteSet> {
    vec![mnist(), fashion_mnist(), cifar10(), cifar100(), stl10()]
}

/// A dataset of MNIST's four files. The checksums are those of training images and labels, then test images
/// and labels.
fn idx(name: &str, source: &str, md5: [&str; 4]) -> RemoteSet {
    let files = ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"];
    let file = |(f, md5): (&str, &str)| RemoteFile { name: format!("{f}-ubyte.gz"), md5: md5.into() };
    let files = files.into_iter().zip(md5).map(file).collect();
    RemoteSet { name: name.into(), source: source.into(), files, unpacked: None }
}

/// A dataset in one archive, with its `members` and their lengths.
fn archive(name: &str, source: &str, file: (&str, &str), folder: &str, members: &[(&str, u64)]) -> RemoteSet {
    let members = members.iter().map(|(n, len)| (n.to_string(), *len)).collect();
    RemoteSet {
        name: name.into(),
        source: source.into(),
        files: vec![RemoteFile { name: file.0.into(), md5: file.1.into() }],
        unpacked: Some(Unpacked { folder: folder.into(), members }),
    }
}

fn mnist() -> RemoteSet {
    idx(
        "Mnist",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        [
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ],
    )
}

fn fashion_mnist() -> RemoteSet {
    idx(
        "FashionMnist",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        [
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ],
    )
}

fn cifar10() -> RemoteSet {
    let batch = 10_000 * (1 + CIFAR);
    archive(
        "Cifar10",
        TORONTO,
        ("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
        "cifar-10-batches-bin",
        &[
            ("data_batch_1.bin", batch),
            ("data_batch_2.bin", batch),
            ("data_batch_3.bin", batch),
            ("data_batch_4.bin", batch),
            ("data_batch_5.bin", batch),
            ("test_batch.bin", batch),
        ],
    )
}

fn cifar100() -> RemoteSet {
    archive(
        "Cifar100",
        TORONTO,
        ("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
        "cifar-100-binary",
        &[("train.bin", 50_000 * (2 + CIFAR)), ("test.bin", 10_000 * (2 + CIFAR))],
    )
}

fn stl10() -> RemoteSet {
    archive(
        "Stl10",
        "http://ai.stanford.edu/~acoates/stl10/",
        ("stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb"),
        "stl10_binary",
        &[
            ("train_X.bin", 5_000 * STL),
            ("train_y.bin", 5_000),
            ("test_X.bin", 8_000 * STL),
            ("test_y.bin", 8_000),
            ("unlabeled_X.bin", 100_000 * STL),
        ],
    )
}
